//! HTTPS, through a proxy as the README has it: the clients believe whom the system believes.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output};

use support::*;

/// nginx in front of a server, with a certificate for localhost by an authority of its own, in a folder of its own.
struct Proxy {
    nginx: Child,
    folder: std::path::PathBuf,
    url: String,
}

impl Proxy {
    fn start(server: std::net::SocketAddr) -> Proxy {
        let folder = std::env::temp_dir().join(format!("statecast-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
             -keyout authority.key -out authority.pem -addext basicConstraints=critical,CA:TRUE \
             && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
             -keyout server.key -out server.csr \
             && printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n' > extensions \
             && openssl x509 -req -in server.csr -CA authority.pem -CAkey authority.key -days 2 -out server.pem \
             -extfile extensions";
        let made = Command::new("sh").args(["-c", script]).current_dir(&folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = format!(
            "daemon off; pid pid; error_log errors; events {{}}
             http {{ access_log off;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
             scgi_temp_path scgi;
             server {{
                 listen 127.0.0.1:{port} ssl; ssl_certificate server.pem; ssl_certificate_key server.key;
                 location / {{ proxy_pass http://{server}; proxy_http_version 1.1; proxy_set_header Connection ''; }}
             }} }}"
        );
        std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(&folder).args(["-c", "nginx.conf", "-e", "errors"]);
        let nginx = nginx.spawn().expect("nginx is installed");
        let proxy = Proxy { nginx, folder, url: format!("https://localhost:{port}/kitchen") };
        wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), |is_there| *is_there);
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        signal(&self.nginx, "TERM");
        self.nginx.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Runs a client that trusts this authority and no other.
fn run(arguments: &[&str], authority: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.args([&DEADLINE.as_secs().to_string(), env!("CARGO_BIN_EXE_statecast")]).args(arguments);
    command.env("SSL_CERT_FILE", authority).output().unwrap()
}

#[test]
#[ignore = "needs nginx and openssl: tests/all installs them"]
fn clients_speak_https_to_whom_the_system_trusts_and_to_nobody_else() {
    let server = start_with(|config| config.open = true);
    let proxy = Proxy::start(server.address());
    let authority = proxy.folder.join("authority.pem");
    let set = run(&["set", &proxy.url, r#"{"temp":21.5}"#], &authority);
    assert_eq!(set.status.code(), Some(0), "{}", String::from_utf8_lossy(&set.stderr));
    let tail = run(&["tail", "--once", &proxy.url], &authority);
    assert_eq!(String::from_utf8(tail.stdout).unwrap(), "{\"temp\":21.5}\n");

    let stranger = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let refused = run(&["set", &proxy.url, "1"], &stranger);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert_eq!(get(server.address(), "/state/kitchen").body, r#"{"temp":21.5}"#, "{error}");
}
