//! Clients' connections, before and around HTTP: how many there may be, how long each may be silent, and how it is
//! closed. Both listeners stand on it.
//!
//! Constraints:
//! 1. A connection always has a limit: to its handshake, to a request's head, to its idleness. A request in flight has
//!    limits of its own (of its body, of the service), and none here.
//! 2. Nothing polls: a connection without news costs a timer and no time.
//! 3. A close by the gateway never takes an answer with it that is on its way (`linger`).

mod activity;
mod attend;
mod held;
mod interim;
mod linger;
mod places;
mod stream;
mod taking;
mod upload;

pub(crate) use self::activity::{Activity, Limits, Protocol};
pub(crate) use self::attend::{Ended, attend};
pub(crate) use self::held::Held;
pub(crate) use self::interim::{InterimSender, spell_head};
pub(crate) use self::places::{Full, Place, Places};
pub(crate) use self::stream::{ClientStream, greet};
pub(crate) use self::taking::while_taken;
pub(crate) use self::upload::{Unread, Upload};
