//! The initramfs archive: cpio in the "newc" format (Linux `Documentation/driver-api/early-userspace/
//! buffer-format`). Written here and not by a tool so that a device node needs no root, and two
//! builds of the same files are the same bytes.

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    Folder,
    /// A file with its contents; `true`: may be executed.
    File(Vec<u8>, bool),
    /// A symbolic link to this target.
    Link(String),
    /// A character device, major and minor number.
    CharacterDevice(u32, u32),
}

/// Path in the archive, without a leading slash, and what is there.
pub type Entry = (String, Node);

const TRAILER: &str = "TRAILER!!!";

/// The archive of `entries`, in their order; a folder has to stand before what it holds.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (path, node)) in entries.iter().enumerate() {
        append(&mut bytes, number + 1, path, node);
    }
    append(&mut bytes, 0, TRAILER, &Node::File(Vec::new(), false));
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn append(bytes: &mut Vec<u8>, inode: usize, path: &str, node: &Node) {
    let (mode, contents, device): (u32, &[u8], (u32, u32)) = match node {
        Node::Folder => (0o040_755, &[], (0, 0)),
        Node::File(contents, false) => (0o100_644, contents, (0, 0)),
        Node::File(contents, true) => (0o100_755, contents, (0, 0)),
        Node::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
        Node::CharacterDevice(major, minor) => (0o020_600, &[], (*major, *minor)),
    };
    let links = if matches!(node, Node::Folder) { 2 } else { 1 };
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    // namesize (with its NUL), check
    let name_size = path.len() + 1;
    let fields = [
        inode as u32,
        mode,
        0,
        0,
        links,
        0,
        contents.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name_size as u32,
        0,
    ];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(contents);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_starts_on_four_bytes_and_carries_sizes() {
        let file = ("a".to_owned(), Node::File(b"12345".to_vec(), true));
        let bytes = archive(&[("dev".to_owned(), Node::Folder), file]);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let second = &text[starts[1]..];
        assert_eq!(&second[14..22], "000081ed", "mode of an executable file");
        assert_eq!(&second[54..62], "00000005", "file size");
        assert_eq!(&second[94..102], "00000002", "name size with its NUL");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn devices_and_links_keep_their_numbers_and_targets() {
        let console = ("dev/console".to_owned(), Node::CharacterDevice(5, 1));
        let link = ("bin/sh".to_owned(), Node::Link("busybox".to_owned()));
        let bytes = archive(&[console, link]);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(&text[78..94], "0000000500000001");
        assert!(text.contains("bin/sh\0\0") && text.contains("busybox"));
    }
}
