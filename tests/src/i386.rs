//! A 32-bit Linux: Debian's kernel for i386, and a program of a few instructions as its `init`.

use std::fs;
use std::path::{Path, PathBuf};

use nexit::demo::cpio::{Node, archive};
use nexit::failure::Result;
use nexit::tool::Tool;

use crate::folder::{Folder, project_folder};
use crate::packaged::one_at_a_time;

/// The package that depends on the newest kernel.
const PACKAGE: &str = "linux-image-686-pae";
/// What `init` writes.
pub const MARKER: &str = "linux32: init runs";

/// The kernel's file. It is fetched by the machine's own apt, with lists of its own, as the machine's are of its own
/// architecture.
///
/// # Errors
/// apt does not know it, or cannot fetch it.
pub fn kernel() -> Result<PathBuf> {
    let folder = project_folder().join("target/guest/i386");
    let kernel = folder.join("vmlinuz");
    let _fetching = one_at_a_time();
    if kernel.is_file() {
        return Ok(kernel);
    }
    let (lists, download) = (folder.join("lists/partial"), folder.join("archives/partial"));
    for made in [&lists, &download] {
        fs::create_dir_all(made).map_err(|error| failed(&folder, &error))?;
    }
    let options = |tool: Tool| {
        let place = folder.display();
        tool.args(["-o", "APT::Architecture=i386", "-o", "APT::Architectures::=i386"])
            .args(["-o", &format!("Dir::State::lists={place}/lists")])
            .args(["-o", &format!("Dir::Cache={place}")])
    };
    // A mirror that is just being changed may lack one of several lists, and still have the kernel.
    let lists = options(Tool::new("apt-get")).args(["--quiet", "update"]).run();
    let fetched = |failure| lists.clone().err().unwrap_or(failure);
    let depends = options(Tool::new("apt-cache")).args(["depends", PACKAGE]).output();
    let depends = depends.map_err(fetched)?;
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = names.map(str::trim).find(|name| name.starts_with("linux-image-"));
    let package = package.unwrap_or(PACKAGE);
    let download = options(Tool::new("apt-get")).args(["--quiet", "download", package]);
    download.within(&folder).run().map_err(fetched)?;
    let unpacked = folder.join("unpacked");
    let archive = entry(&folder, "linux-image-")?;
    Tool::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked).run()?;
    let image = entry(&unpacked.join("boot"), "vmlinuz-")?;
    fs::rename(image, &kernel).map_err(|error| failed(&kernel, &error))?;
    let _ = fs::remove_dir_all(unpacked);
    let _ = fs::remove_file(archive);
    Ok(kernel)
}

pub(crate) fn failed(path: &Path, error: &std::io::Error) -> nexit::failure::Failure {
    nexit::failure::Failure::Failed(format!("{}: {error}", path.display()))
}

pub(crate) fn entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    let missing = std::io::Error::other(format!("no {prefix}* there"));
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(named)
        .ok_or_else(|| failed(folder, &missing))
}

/// An initramfs whose `init` sleeps for a tenth of a second, says [`MARKER`] and switches the machine off.
#[must_use]
pub fn initrd(folder: &Folder) -> String {
    let console = ("dev/console".to_owned(), Node::CharacterDevice(5, 1));
    let init = ("init".to_owned(), Node::File(program(), true));
    folder.write("initrd.img", archive(&[("dev".to_owned(), Node::Folder), console, init]))
}

/// An ELF file for i386 with one segment: its header, the code, the data.
fn program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    const CODE: u32 = 72;
    let data = BASE + HEADERS + CODE;
    let text = format!("{MARKER}\n");
    let call = |number: u32, arguments: [u32; 3]| {
        let [first, second, third] = arguments;
        let mut code = Vec::new();
        // MOV to EAX, EBX, ECX, EDX; INT 0x80.
        for (opcode, value) in [(0xb8, number), (0xbb, first), (0xb9, second), (0xba, third)] {
            code.push(opcode);
            code.extend(value.to_le_bytes());
        }
        code.extend([0xcd, 0x80]);
        code
    };
    // nanosleep, write, reboot (Linux, `arch/x86/entry/syscalls/syscall_32.tbl`).
    let mut code = call(162, [data, 0, 0]);
    code.extend(call(4, [1, data + 8, text.len() as u32]));
    code.extend(call(88, [0xfee1_dead, 672_274_793, 0x4321_fedc]));
    code.extend([0xeb, 0xfe]);
    code.resize(CODE as usize, 0x90);
    let length = HEADERS + CODE + 8 + text.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, 0, BASE, BASE, length, length, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(code);
    for word in [0_u32, 100_000_000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(text.as_bytes());
    file
}
