//! Listening sockets that were open before the program started, handed over by systemd's socket activation (`LISTEN_FDS`,
//! sd_listen_fds(3)). They outlive the process, so that a restart refuses no connection.

use std::net::TcpListener;

use listenfd::ListenFd;

/// The names of the two in `LISTEN_FDNAMES` (`FileDescriptorName=` of a socket unit).
const NAMES: [&str; 2] = ["listen", "admin"];

/// The sockets that were handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For clients, in place of `server.listen`.
    pub listen: Option<TcpListener>,
    /// For operators, in place of `server.admin_listen`.
    pub admin: Option<TcpListener>,
}

impl Inherited {
    /// Takes what the environment says was handed over. To be called before any thread is started: the variables are
    /// removed, so that no child takes them for its own.
    ///
    /// # Errors
    /// One sentence: too many sockets, one that is no TCP listener, two of one name.
    pub fn from_env() -> Result<Self, String> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(handed.len());
        for at in 0..handed.len() {
            let socket = handed.take_tcp_listener(at);
            let socket = socket.map_err(|error| format!("LISTEN_FDS hands over no TCP listener: {error}"))?;
            sockets.extend(socket);
        }
        let mut inherited = Self::default();
        for (socket, place) in sockets.into_iter().zip(places(&names)) {
            let place = place?;
            let taken = match place {
                0 => inherited.listen.replace(socket),
                1 => inherited.admin.replace(socket),
                _ => return Err("LISTEN_FDS hands over more than two sockets: pass one for clients, and one for operators".into()),
            };
            if taken.is_some() {
                return Err(format!(
                    "LISTEN_FDNAMES names two sockets {:?}: name them listen and admin",
                    NAMES[place]
                ));
            }
        }
        Ok(inherited)
    }
}

/// Which socket is which: by the names where all are known, else by their order.
fn places(names: &str) -> impl Iterator<Item = Result<usize, String>> + '_ {
    let known: Vec<Option<usize>> =
        names.split(':').map(|name| NAMES.iter().position(|known| *known == name)).collect();
    let named = known.iter().any(Option::is_some);
    (0..).map(move |at| match (named, known.get(at)) {
        (false, _) => Ok(at),
        (true, Some(Some(place))) => Ok(*place),
        (true, _) => Err(format!("LISTEN_FDNAMES is {names:?}: name every socket listen or admin, or none")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_apart_by_name_or_else_by_order() {
        let of = |names: &str, count| places(names).take(count).collect::<Result<Vec<_>, _>>();
        assert_eq!(of("", 2), Ok(vec![0, 1]));
        assert_eq!(of("tollgate.socket:tollgate.socket", 2), Ok(vec![0, 1]));
        assert_eq!(of("admin:listen", 2), Ok(vec![1, 0]));
        assert_eq!(of("admin", 1), Ok(vec![1]));
        assert!(of("listen:other", 2).is_err());
    }
}
