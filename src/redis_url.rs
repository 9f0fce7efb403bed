//! Where Redis is, and how to be let in.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};

/// The URL of a Redis: `redis://host:port`, `redis+unix:///path` or, with the feature `tls`, `rediss://host:port`; with a
/// password as in `redis://:password@host`. Neither `Debug` nor an error shows it.
#[derive(Clone)]
pub struct RedisUrl(ConnectionInfo);

impl RedisUrl {
    /// The URL of that text.
    ///
    /// # Errors
    /// The text is no such URL. The error says what would be, and nothing of the text.
    pub fn new(text: &str) -> Result<RedisUrl, String> {
        let text = text.trim();
        let known = ["redis:", "redis+unix:", "rediss:", "valkey:", "valkey+unix:", "valkeys:"];
        let info = known.iter().any(|scheme| text.starts_with(scheme)).then(|| text.into_connection_info());
        match info {
            Some(Ok(info)) if !info.addr().is_supported() => {
                Err("redis://HOST:PORT; rediss:// needs a build with the feature `tls`".to_owned())
            }
            Some(Ok(info)) => {
                // A command waits for nothing that would make its packet fuller.
                let tcp = TcpSettings::default().set_nodelay(true);
                let redis = info.redis_settings().clone();
                // The older protocol says the same, and every Redis speaks it.
                let redis = redis.set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
                Ok(RedisUrl(info.set_tcp_settings(tcp).set_redis_settings(redis)))
            }
            _ => Err("redis://HOST:PORT or redis+unix:///PATH, with a password redis://:PASSWORD@HOST:PORT"
                .to_owned()),
        }
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        self.0.clone()
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(..)")
    }
}

/// Where it is, without whatever lets one in.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.addr() {
            ConnectionAddr::Unix(path) => write!(f, "{}", path.display())?,
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                write!(f, "{host}:{port}")?;
            }
            _ => f.write_str("its address")?,
        }
        match self.0.redis_settings().db() {
            0 => Ok(()),
            db => write!(f, "/{db}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_where_redis_is_and_nothing_that_lets_one_in() {
        for (text, shown) in [
            ("redis://localhost", "localhost:6379"),
            ("redis://bob:s3cret@127.0.0.1:7000/3\n", "127.0.0.1:7000/3"),
            ("redis+unix:///run/s.sock?pass=s3cret", "/run/s.sock"),
        ] {
            let url = RedisUrl::new(text).expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), "RedisUrl(..)");
        }
        for text in [
            "",
            "s3cret",
            "http://s3cret@x",
            "redis://:s3cret@",
            "redis://:s3cret@0.0.0.0",
            "redis://x/s3cret",
        ] {
            let right = RedisUrl::new(text).expect_err(text);
            assert!(right.contains("redis://HOST:PORT") && !right.contains("s3cret"), "{right}");
        }
    }
}
