//! Who is charged.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spelling::canonical;

/// The longest tenant id accepted, in bytes. The service's own ids are UUIDs (36) or `tn_` and up to 32 more.
pub const MAX_TENANT_ID_BYTES: usize = 128;

/// Who is charged for sessions that could not be looked up, all of them together; also the plan that says how much.
pub const UNRESOLVED: &str = "unresolved";

/// A tenant's id: 1 to [`MAX_TENANT_ID_BYTES`] bytes of `[A-Za-z0-9_.:@-]`.
///
/// The service uses UUIDs and `tn_[a-z0-9]{5,32}`; other services have other habits, so the alphabet is what is
/// safe in a log line, a header and a file name rather than one service's pattern. A UUID is kept in its canonical
/// spelling, so that one tenant has one id however it is written; any other id as it is. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// The text is not a tenant id: empty, too long, or with a character outside the alphabet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a tenant id: it must be 1 to {MAX_TENANT_ID_BYTES} characters of A-Z a-z 0-9 _ . : @ -")]
pub struct InvalidTenantId;

impl TenantId {
    /// Checks and takes over a tenant id; a UUID in its canonical spelling ([`canonical`]).
    pub fn parse(text: &str) -> Result<Self, InvalidTenantId> {
        let text = &*canonical(text);
        let safe = |b: &u8| b.is_ascii_alphanumeric() || b"_.:@-".contains(b);
        if text.is_empty() || text.len() > MAX_TENANT_ID_BYTES || !text.as_bytes().iter().all(safe) {
            return Err(InvalidTenantId);
        }
        Ok(Self(text.into()))
    }

    /// [`UNRESOLVED`].
    pub fn unresolved() -> Self {
        Self(UNRESOLVED.into())
    }

    /// Whether it stands for sessions that could not be looked up.
    pub fn is_unresolved(&self) -> bool {
        self.as_str() == UNRESOLVED
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenantId;

    fn try_from(text: String) -> Result<Self, InvalidTenantId> {
        Self::parse(&text)
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// The name of a plan, as the config and the service's tables write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PlanName(Arc<str>);

impl PlanName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PlanName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_service_are_accepted() {
        for id in ["tn_one", "tn_ab12cd", "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f"] {
            assert_eq!(TenantId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn a_tenant_is_the_same_however_its_uuid_is_written() {
        let tenant = TenantId::parse("018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f");
        for spelling in ["{018F6B1E-6F7E-7C3A-9D3E-0A1B2C3D4E5F}", "018f6b1e6f7e7c3a9d3e0a1b2c3d4e5f"] {
            assert_eq!(TenantId::parse(spelling), tenant, "{spelling}");
        }
        assert_eq!(TenantId::parse("TN_one").unwrap().as_str(), "TN_one");
    }

    #[test]
    fn ids_that_could_harm_a_log_line_are_refused() {
        for id in ["", "a b", "a\r\nb", "a\u{0}", "ä", "x/../y", &"a".repeat(129)] {
            assert_eq!(TenantId::parse(id), Err(InvalidTenantId), "{id:?}");
        }
    }
}
