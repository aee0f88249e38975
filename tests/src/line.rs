//! What machines without `nexit run` need: a disc to boot from, and the other end of a serial line.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::folder::Folder;
use crate::picture::Silent;

/// Builds a bootable image of this configuration.
///
/// # Panics
/// It cannot be built.
#[must_use]
pub fn image(folder: &Folder, toml: &str, loader: &str) -> String {
    let config = folder.write("nexit.toml", toml);
    let output = folder.path("nexit.iso").display().to_string();
    let options = ["image", "--config", &config, "--loader", loader, "--output", &output];
    let outcome = folder.nexit("image", &options);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    output
}

/// QEMU's arguments for a drive with this image.
#[must_use]
pub fn disc(iso: &str) -> [String; 4] {
    [
        "-drive".into(),
        format!("if=none,id=cd,media=cdrom,format=raw,readonly=on,file={iso}"),
        "-device".into(),
        "ide-cd,drive=cd,bus=ide.0,bootindex=0".into(),
    ]
}

/// QEMU's arguments for UEFI.
#[must_use]
pub fn firmware() -> [String; 2] {
    [
        "-drive".into(),
        "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
    ]
}

/// The other end of a serial line.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    said: String,
}

impl Line {
    /// Boots a machine that has no UART but `device`, whose character device is `line`, with these
    /// further arguments.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn alone(folder: &Folder, toml: &str, device: &str, further: &[&str]) -> (Silent, Self) {
        let iso = disc(&image(folder, toml, "grub"));
        let mut arguments: Vec<&str> = iso.iter().map(String::as_str).collect();
        arguments.extend(further);
        Self::start(folder, device, &arguments)
    }

    /// The same, where the arguments say what the machine boots from.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    #[expect(clippy::expect_used, reason = "only tests call it")]
    pub fn start(folder: &Folder, device: &str, further: &[&str]) -> (Silent, Self) {
        let socket = folder.path("line");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let line = format!("socket,id=line,path={}", socket.display());
        let mut arguments = vec!["-chardev", &line, "-device", device];
        arguments.extend(further);
        let machine = Silent::start(folder, &arguments);
        let (stream, _) = listener.accept().expect("QEMU connects");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a time limit");
        (machine, Self { stream, said: String::new() })
    }

    /// Reads until `text` has come.
    ///
    /// # Panics
    /// It does not come.
    pub fn hear(&mut self, text: &str) {
        while !self.said.contains(text) {
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).unwrap_or_default();
            assert!(read > 0, "{text:?} does not come\n{}", self.said);
            self.said.push_str(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()));
        }
    }

    /// All that has come.
    #[must_use]
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Types keys.
    ///
    /// # Panics
    /// The machine is gone.
    pub fn keys(&mut self, keys: &str) {
        let typed = self.stream.write_all(keys.as_bytes());
        assert!(typed.is_ok(), "cannot type {keys:?}: {typed:?}");
    }
}
