//! Real proxies in front of a server: nginx and Caddy, with the README's very configurations or with none.
//!
//! Each is a process of its own, with a folder of its own for everything that it writes, without root, on a port of
//! 127.0.0.1. Its end ends the process and removes the folder, also when the test panics.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::places::{free_address, new_folder};
use crate::support::{blocks, signal, wait_until};

/// Where the README's statecast listens.
const README_SERVER: &str = "127.0.0.1:8080";

pub struct Proxy {
    pub address: SocketAddr,
    folder: PathBuf,
    command: Vec<String>,
    child: Option<Child>,
}

impl Proxy {
    /// nginx before one server, as the README configures it.
    pub fn nginx(server: SocketAddr) -> Proxy {
        let block = nginx_block(false);
        Proxy::nginx_with(|address| {
            let block = replaced(&block, README_SERVER, &server.to_string());
            replaced(&block, "listen 80;", &format!("listen {address};"))
        })
    }

    /// The same for HTTPS, and with a key for each sensor, as the README has both.
    pub fn nginx_of_sensors(server: SocketAddr) -> Proxy {
        let [https, rights] = blocks("conf")[..] else { panic!("the README has two") };
        let (keys, header) = rights.split_once("}\n").expect("a map, and a line for the location");
        let folder = new_folder("certificate");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"])
            .args(["/CN=example.org", "-keyout", "privkey.pem", "-out", "fullchain.pem"])
            .current_dir(&folder)
            .output()
            .expect("openssl: tests/all installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let certificates = folder.display().to_string();
        let proxy = Proxy::nginx_with(|address| {
            let block = replaced(&nginx_block(false), README_SERVER, &server.to_string());
            let block = replaced(&block, "    listen 80;\n", https);
            let block = replaced(&block, "443", &address.to_string());
            let block = replaced(&block, "/etc/letsencrypt/live/example.org", &certificates);
            let location = "    location / {\n";
            format!("{keys}}}\n{}", replaced(&block, location, &format!("{location}{header}")))
        });
        fs::remove_dir_all(folder).ok();
        proxy
    }

    /// nginx before several servers, as the README configures it.
    pub fn nginx_over(servers: &[SocketAddr]) -> Proxy {
        let block = nginx_block(true);
        Proxy::nginx_with(|address| {
            let mut left = servers.iter();
            let place = |line: &str| match line.trim_start().strip_prefix("server 127.") {
                Some(rest) => {
                    let server = left.next().expect("a server for each in the README");
                    let rest = rest.trim_start_matches(|letter| ".:0123456789".contains(letter));
                    format!("server {server}{rest}\n")
                }
                None => format!("{line}\n"),
            };
            let block: String = block.lines().map(place).collect();
            assert!(left.next().is_none(), "the README has a server for each: {block}");
            replaced(&block, "listen 80;", &format!("listen {address};"))
        })
    }

    /// nginx that is told nothing but where the server is.
    pub fn default_nginx(server: SocketAddr) -> Proxy {
        Proxy::nginx_with(|address| {
            format!("server {{ listen {address}; location / {{ proxy_pass http://{server}; }} }}\n")
        })
    }

    fn nginx_with(site: impl FnOnce(SocketAddr) -> String) -> Proxy {
        let (address, folder) = (free_address(), new_folder("proxy"));
        let path = folder.display();
        let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let folders = folders.map(|name| format!("{name}_temp_path {path}/{name};\n")).concat();
        // One process: whatever ends it leaves nothing behind.
        let process = format!("daemon off;\nmaster_process off;\npid {path}/pid;\nevents {{}}\n");
        let site = site(address);
        fs::write(
            folder.join("nginx.conf"),
            format!("{process}http {{\naccess_log off;\n{folders}{site}}}\n"),
        )
        .expect("a file");
        let options = [format!("-p{path}"), format!("-c{path}/nginx.conf"), "-e/dev/stderr".to_owned()];
        Proxy::start_in(folder, address, [vec!["nginx".to_owned()], options.to_vec()].concat())
    }

    /// Caddy, as the README configures it, but without HTTPS: example.org is somebody else's.
    pub fn caddy(server: SocketAddr) -> Proxy {
        let (address, folder) = (free_address(), new_folder("proxy"));
        let site = replaced(&blocks("caddy").concat(), README_SERVER, &server.to_string());
        let site = replaced(&site, "example.org", &format!("http://{address}"));
        // Its second port would be one for all.
        let site = replaced(&site, "grace_period", "admin off\n    grace_period");
        fs::write(folder.join("Caddyfile"), site).expect("a file");
        let file = folder.join("Caddyfile").display().to_string();
        let command = ["caddy", "run", "--adapter", "caddyfile", "--config", &file].map(str::to_owned);
        Proxy::start_in(folder, address, command.to_vec())
    }

    fn start_in(folder: PathBuf, address: SocketAddr, command: Vec<String>) -> Proxy {
        let mut proxy = Proxy { address, folder, command, child: None };
        proxy.start();
        proxy
    }

    /// Starts it, or starts it again at the same address.
    pub fn start(&mut self) {
        let program = &self.command[0];
        // Debian keeps nginx where only root looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("env");
        command.arg(format!("PATH={path}")).args(&self.command);
        for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
            command.env(variable, &self.folder);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = self.child.insert(child.expect("env runs"));
        let accepts = || TcpStream::connect(self.address).is_ok();
        wait_until(|| accepts() || child.try_wait().expect("our child").is_some(), |is_over| *is_over);
        if child.try_wait().expect("our child").is_some() {
            let mut said = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
            panic!("{program} does not run (tests/all installs it): {said}");
        }
    }

    /// Stops it as a restart of the machine's service would, and waits for that.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "TERM");
            wait_until(|| child.try_wait().expect("our child"), Option::is_some);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The README's configuration of nginx, before one server or before several.
fn nginx_block(is_for_several: bool) -> String {
    let blocks = blocks("nginx").into_iter().filter(|block| block.contains("upstream") == is_for_several);
    blocks.collect::<Vec<_>>().concat()
}

/// The text with something in it replaced that must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the README's configuration has no {from:?}");
    text.replace(from, to)
}
