//! A database URL, taken apart: what tokio-postgres understands, and the TLS options that it does not.
//!
//! tokio-postgres knows `sslmode=disable|prefer|require` and refuses the rest, so the options that say how to verify
//! are taken out of the URL here. Their meaning is libpq's:
//! <https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::{Host, SslMode};

/// Whom a TLS connection trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Anybody: encrypted, but not verified (`prefer`, `require`).
    Anyone,
    /// A certificate that the roots vouch for, whatever its name (`verify-ca`).
    Authority(Roots),
    /// A certificate that the roots vouch for, for this host (`verify-full`).
    Host(Roots),
}

/// Which authorities vouch for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// The machine's own.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

/// A client certificate, for servers that ask for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// A URL, taken apart.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) postgres: tokio_postgres::Config,
    pub(super) trust: Trust,
    pub(super) identity: Option<Identity>,
    /// Where it points, for messages: `host:port/database`, never a user or a password.
    pub(super) place: String,
}

impl Address {
    /// Takes `url` apart. The error is one sentence and quotes nothing that could be (a part of) a password.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err("the database URL must begin with postgres:// or postgresql://".to_owned());
        }
        check_credentials(url).map_err(|why| format!("the database URL is not plain: {why}"))?;
        // As tokio-postgres reads it: what is before the first `@` is a user and a password, a `?` in it included.
        let credentials = url.find('@').unwrap_or(0);
        let (base, query) = match url[credentials..].find('?') {
            Some(at) => (&url[..credentials + at], &url[credentials + at + 1..]),
            None => (url, ""),
        };
        let mut mode = String::from("prefer");
        let (mut root, mut certificate, mut key) = (None, None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "sslmode" => mode = decoded,
                "sslrootcert" => root = Some(decoded),
                "sslcert" => certificate = Some(PathBuf::from(decoded)),
                "sslkey" => key = Some(PathBuf::from(decoded)),
                _ => rest.push(pair),
            }
        }
        let plain = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut postgres: tokio_postgres::Config =
            plain.parse().map_err(|error| unreadable(&error, &rest))?;

        let roots = match root.as_deref() {
            None | Some("system") => Roots::System,
            Some(file) => Roots::File(PathBuf::from(file)),
        };
        let (ssl, trust) = match mode.as_str() {
            "disable" => (SslMode::Disable, Trust::Anyone),
            "allow" | "prefer" => (SslMode::Prefer, Trust::Anyone),
            // libpq: "if a root CA file exists, the behavior of sslmode=require will be the same as that of verify-ca".
            "require" if root.is_some() => (SslMode::Require, Trust::Authority(roots)),
            "require" => (SslMode::Require, Trust::Anyone),
            "verify-ca" => (SslMode::Require, Trust::Authority(roots)),
            "verify-full" => (SslMode::Require, Trust::Host(roots)),
            _ => {
                return Err("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned());
            }
        };
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (None, None) => None,
            _ => return Err("sslcert and sslkey come together".to_owned()),
        };
        // Like libpq: sslmode is ignored for Unix sockets, which offer no TLS.
        let local = postgres.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        postgres.ssl_mode(if local && !postgres.get_hosts().is_empty() { SslMode::Disable } else { ssl });
        if postgres.get_hosts().is_empty() && postgres.get_hostaddrs().is_empty() {
            return Err("the database URL names no host (for a Unix socket: ?host=/directory)".to_owned());
        }
        let place = place(&postgres);
        Ok(Self { postgres, trust, identity, place })
    }
}

/// Whether it is plain where the password of `url` ends. With an `@` in it, its rest would be taken for the host, be looked
/// up and be shown.
///
/// # Errors
/// It is not, and what to do; nothing of the URL is quoted.
pub fn check_credentials(url: &str) -> Result<(), String> {
    let Some((_, behind)) = url.split_once('@') else { return Ok(()) };
    let (hosts, query) = behind.split_once('?').unwrap_or((behind, ""));
    // An option may hold one: it is one of ours where every name is an option's.
    let is_option = |pair: &str| pair.split_once('=').is_some_and(|(name, _)| OPTIONS.contains(&name));
    let plain = !hosts.contains('@') && (!query.contains('@') || query.split('&').all(is_option));
    if plain && !hosts.contains('#') {
        return Ok(());
    }
    let why = "its password seems to hold an @ of its own: write %40 for it, %23 for # and %3F for ?, so that it is \
               plain where the password ends";
    Err(why.to_owned())
}

/// The options of a URL that may be there beside others with an `@` in them.
const OPTIONS: [&str; 12] = [
    "application_name",
    "options",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "target_session_attrs",
    "keepalives",
    "keepalives_idle",
    "host",
    "port",
];

/// What is wrong with a URL that tokio-postgres can't read. An option is named only when it looks like one: of a
/// password with an unescaped `@` the rest may end up among the options, and then another `@` does too.
fn unreadable(error: &tokio_postgres::Error, options: &[&str]) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let named = options
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, _)| name)
        .filter(|_| !options.iter().any(|pair| pair.contains('@')))
        .filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .find(|name| cause.contains(name));
    match named {
        Some(name) => format!("the database URL's option {name} is unknown, or its value is not valid"),
        None => "the database URL is not valid (special characters in its password must be percent-encoded)"
            .to_owned(),
    }
}

fn place(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
        }
    });
    let mut hosts: Vec<_> = hosts.collect();
    if hosts.is_empty() {
        hosts.extend(config.get_hostaddrs().iter().map(ToString::to_string));
    }
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{database}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_that_verify_are_taken_out() {
        let address = Address::parse(
            "postgres://u:p@db.example:6432/app?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&application_name=x",
        )
        .ok()
        .unwrap();
        assert_eq!(address.trust, Trust::Host(Roots::File("/etc/ca.pem".into())));
        assert_eq!(address.postgres.get_ssl_mode(), SslMode::Require);
        assert_eq!(address.postgres.get_application_name(), Some("x"));
        assert_eq!(address.place, "db.example:6432/app");
    }

    #[test]
    fn modes_mean_what_they_mean_to_libpq() {
        let trust = |query: &str| {
            let address = Address::parse(&format!("postgres://u@h/d?{query}")).ok().unwrap();
            (address.postgres.get_ssl_mode(), address.trust)
        };
        assert_eq!(trust(""), (SslMode::Prefer, Trust::Anyone));
        assert_eq!(trust("sslmode=disable"), (SslMode::Disable, Trust::Anyone));
        assert_eq!(trust("sslmode=require"), (SslMode::Require, Trust::Anyone));
        assert_eq!(
            trust("sslmode=require&sslrootcert=a"),
            (SslMode::Require, Trust::Authority(Roots::File("a".into())))
        );
        assert_eq!(trust("sslmode=verify-ca"), (SslMode::Require, Trust::Authority(Roots::System)));
        assert_eq!(
            trust("sslmode=verify-full&sslrootcert=system"),
            (SslMode::Require, Trust::Host(Roots::System))
        );
    }

    #[test]
    fn a_unix_socket_is_never_asked_for_tls() {
        let address = Address::parse("postgres://u@/d?host=%2Ftmp%2Fsock&sslmode=require").ok().unwrap();
        assert_eq!(address.postgres.get_ssl_mode(), SslMode::Disable);
        assert_eq!(address.postgres.get_hosts(), [Host::Unix("/tmp/sock".into())]);
        assert_eq!(address.place, "/tmp/sock/.s.PGSQL.5432/d");
    }

    #[test]
    fn no_error_quotes_a_password() {
        for url in [
            "postgres://u:s3cret@h/d?s3cret",
            "postgres://u:s3cret@x?cret=1@h/d",
            "postgres://u:s3cret@h:port/d",
            "postgres://u:s3cret@h/d?sslmode=s3cret",
            "host=h password=s3cret",
            "postgres://u:s3cret@/d",
            "postgres://u:s3@cret@h/d",
            "postgres://u:s3@cret/x@h/d",
            "postgres://u:s3@cret#x@h/d",
            "postgres://u:s3@cret?x=1@h/d",
            "postgres://u:s3@#cret@h/d",
            "postgres://u:s@3cret?sslmode=cret@h/d",
            "postgres://u:s3cret@h#x/d",
        ] {
            let error = Address::parse(url).err().unwrap_or_else(|| panic!("{url} is accepted"));
            assert!(!error.contains("s3") && !error.contains("cret"), "{url}: {error}");
        }
    }

    #[test]
    fn a_question_mark_in_a_password_is_a_part_of_it() {
        let address = Address::parse("postgres://u:s3?cret=x@h/d?sslmode=require").ok().unwrap();
        assert_eq!(address.postgres.get_password(), Some(&b"s3?cret=x"[..]));
        assert_eq!(address.postgres.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn a_hash_a_slash_and_a_colon_in_a_password_are_parts_of_it() {
        for password in ["s3#cret", "s3/cret", "s3:cret", "#", "/", "a%40b"] {
            let address = Address::parse(&format!("postgres://u:{password}@h:1/d")).ok().unwrap();
            let decoded = percent_decode_str(password).decode_utf8().unwrap();
            assert_eq!(address.postgres.get_password(), Some(decoded.as_bytes()), "{password}");
            assert_eq!(address.place, "h:1/d", "{password}");
        }
        let address = Address::parse("postgres://u:p@h/d?application_name=a@b").ok().unwrap();
        assert_eq!(address.postgres.get_application_name(), Some("a@b"));
    }

    #[test]
    fn an_unknown_option_is_named() {
        let error = Address::parse("postgres://u@h/d?gremlins=1").err().unwrap();
        assert!(error.contains("gremlins"), "{error}");
    }
}
