//! Whose session it is.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::answers::Answer;
use super::directory::Directory;
use crate::model::spelling::canonical;

impl Directory {
    /// Looks a session up by its canonical id, and where that is not known, by the id as it came: a service may keep its
    /// UUIDs as texts, in another spelling. Also gives the spelling that the service knows; the one that came, where it
    /// knows none.
    ///
    /// `client` is the address that asks: see [`Directory::look_up_for`].
    pub async fn look_up_session<'a>(
        self: &Arc<Self>,
        query: &Arc<str>,
        session: &'a str,
        client: Option<IpAddr>,
    ) -> (Answer, Cow<'a, str>) {
        let id = canonical(session);
        match self.look_up_for(query, &id, client).await {
            Answer::Absent if id != session => {
                (self.look_up_for(query, session, client).await, Cow::Borrowed(session))
            }
            Answer::Known(tenant) => (Answer::Known(tenant), id),
            answer => (answer, Cow::Borrowed(session)),
        }
    }
}
