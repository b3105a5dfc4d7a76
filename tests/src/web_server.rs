//! A static web server with TLS, as people publish directories with: nginx.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::scratch::Scratch;
use crate::{prerequisites, process};

/// How long it may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// One body that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Status code of the answer.
    pub status: u16,
    /// Path that was asked for.
    pub path: String,
    /// Length of the body.
    pub bytes: u64,
}

/// The server; ended when dropped.
#[derive(Debug)]
pub struct WebServer {
    child: Child,
    port: u16,
    scratch: Scratch,
}

impl WebServer {
    /// Serves a directory on an address of this host, with a certificate that only [`WebServer::certificate`] vouches for.
    ///
    /// # Errors
    /// When nginx is not installed or does not come up.
    pub fn serve(directory: &Path) -> Result<Self> {
        let program = prerequisites::command("nginx", "nginx-light")?;
        let scratch = Scratch::new("web")?;
        make_certificate(&scratch)?;
        // Nobody else is given it so soon.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let configuration = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid web.pid;\nevents {{}}\nhttp {{\n\
             log_format sent '$status $uri $body_bytes_sent';\naccess_log sent.log sent;\n\
             server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate web.crt;\nssl_certificate_key web.key;\nroot {:?};\n}}\n}}\n",
            directory.display().to_string()
        );
        fs::write(scratch.join("web.conf"), configuration)?;
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(&*scratch)
            .args(["-c", "web.conf", "-e", "errors.log"]);
        let child = process::spawn_logged(&mut command, &scratch.join("log"))?;
        let server = Self { child, port, scratch };
        let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        process::wait_until("nginx to listen", PATIENCE, listens)
            .with_context(|| fs::read_to_string(server.scratch.join("errors.log")).unwrap_or_default())?;
        Ok(server)
    }

    /// Host and port, as certificate and URLs name them.
    pub fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The file with its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.scratch.join("web.crt")
    }

    /// What it has sent.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn sent(&self) -> Result<Vec<Sent>> {
        let log = fs::read_to_string(self.scratch.join("sent.log"))?;
        log.lines()
            .map(|line| parse(line).with_context(|| line.to_owned()))
            .collect()
    }
}

fn parse(line: &str) -> Option<Sent> {
    let (status, rest) = line.split_once(' ')?;
    let (path, bytes) = rest.rsplit_once(' ')?;
    Some(Sent {
        status: status.parse().ok()?,
        path: path.to_owned(),
        bytes: bytes.parse().ok()?,
    })
}

fn make_certificate(directory: &Path) -> Result<()> {
    let openssl = prerequisites::command("openssl", "openssl")?;
    let mut command = Command::new(openssl);
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]);
    command.args([
        "-days",
        "30",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-keyout").arg(directory.join("web.key"));
    command.arg("-out").arg(directory.join("web.crt"));
    process::run(&mut command)?;
    Ok(())
}

impl Drop for WebServer {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}
