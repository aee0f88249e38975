//! PKRU: which rights of which key, for whom.

use payload::fact;

use super::{KINDS, READ, access};
use crate::control::{self, cr0, cr4, has, set_cr0, set_cr4};
use crate::pages::{self, ALL, PRESENT, TARGET, WRITE};
use crate::trial::{self, Mode, Registers};

pub(super) fn all() {
    const KEY: u64 = 5;
    const READ_PKRU: &[u8] = &[0x0f, 0x01, 0xee];
    const WRITE_PKRU: &[u8] = &[0x0f, 0x01, 0xef];
    if !has(control::HAS_PKU) {
        return;
    }
    let (control_0, control_4) = (cr0(), cr4());
    let pkru = |code, rcx, rdx, rax| {
        trial::run(Mode::Kernel, code, Registers { rax, rcx, rdx, ..Registers::default() })
    };
    let announced = || control::register(7, 0, 2) >> 4 & 1;
    fact!("protect: PKE=0: CPUID's OSPKE, RDPKRU, WRPKRU"; "{}, {}, {}",
        announced(), pkru(READ_PKRU, 0, 0, 0), pkru(WRITE_PKRU, 0, 0, 0));
    set_cr4(control_4 | control::PKE);
    fact!("protect: PKE=1: CPUID's OSPKE, RDPKRU, WRPKRU"; "{}, {}, {}",
        announced(), pkru(READ_PKRU, 0, 0, 0), pkru(WRITE_PKRU, 0, 0, 0));
    fact!("protect: RDPKRU with ECX=1, WRPKRU with ECX=1, with EDX=1"; "{}, {}, {}",
        pkru(READ_PKRU, 1, 0, 0), pkru(WRITE_PKRU, 1, 0, 0), pkru(WRITE_PKRU, 0, 1, 0));
    pkru(WRITE_PKRU, 0, 0, 0x5555_aa50);
    fact!("protect: RDPKRU of what was written, EDX"; "{:#x}, {:#x}",
        pkru(READ_PKRU, 0, 7, 0).after.rax, pkru(READ_PKRU, 0, 7, 0).after.rdx);
    fact!("protect: RDPKRU at CPL 3"; "{}", trial::run(Mode::User, READ_PKRU, Registers::default()));
    pages::map(TARGET, ALL | KEY << 59);
    for rights in 0..4 {
        pkru(WRITE_PKRU, 0, 0, rights << (2 * KEY));
        for protect in [0, control::WP] {
            set_cr0(control_0 & !control::WP | protect);
            for (mode, level) in [(Mode::Kernel, 0), (Mode::User, 3)] {
                let [read, write, fetch] = KINDS.map(|(_, code)| access(mode, code, 0));
                fact!("protect: PKRU {rights:#b} WP={} CPL {level}: read, write, fetch", u8::from(protect != 0);
                    "{read}, {write}, {fetch}");
            }
        }
    }
    set_cr0(control_0);
    pkru(WRITE_PKRU, 0, 0, !(3 << (2 * KEY)) & !0xf & 0xffff_ffff);
    fact!("protect: PKRU against all other keys, CPL 3 reads"; "{}", access(Mode::User, READ, 0));
    pkru(WRITE_PKRU, 0, 0, 3 << (2 * KEY));
    pages::map(TARGET, PRESENT | WRITE | KEY << 59);
    fact!("protect: PKRU against a supervisor's page, CPL 0 reads"; "{}", access(Mode::Kernel, READ, 0));
    pages::map(TARGET, KEY << 59);
    fact!("protect: PKRU against a page that is not there, CPL 0 reads"; "{}", access(Mode::Kernel, READ, 0));
    set_cr4(control_4);
    pages::map(TARGET, ALL | KEY << 59);
    fact!("protect: PKE=0, a key that has no rights, CPL 3 reads"; "{}", access(Mode::User, READ, 0));
    set_cr4(control_4 | control::PKE);
    pkru(WRITE_PKRU, 0, 0, 0);
    set_cr4(control_4);
    pages::map(TARGET, ALL);
}
