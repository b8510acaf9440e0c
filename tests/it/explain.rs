//! Why a tenant may use what it may.
