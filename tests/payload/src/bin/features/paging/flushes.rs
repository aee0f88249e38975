//! What an access sees after a page has become another and something has flushed; INVPCID and PCIDs.

use payload::fact;

use super::{NOT_CANONICAL, READ, access};
use crate::control::{self, cr0, cr4, has, set_cr0, set_cr3, set_cr4};
use crate::pages::{self, ACCESSED, ALL, DIRTY, GLOBAL, Level, OTHER, TARGET};
use crate::trial::{self, Mode, Outcome, Registers};

const INVPCID: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x37]; // INVPCID RSI, [RDI]

/// What an access sees after a page has become another, and something that flushes.
pub(super) fn flushes() {
    let entry = pages::entry(Level::Pte);
    let [target, other] = [TARGET, OTHER].map(|page| pages::data(page) as u64);
    let before = cr4();
    let bits = ACCESSED | DIRTY;
    let reads_after = |global: u64, flush: &dyn Fn() -> Outcome| {
        pages::write(entry, target | ALL | global | bits);
        // The TLB may have the page from here on.
        access(Mode::Kernel, READ);
        // SAFETY: the page's entry; nothing is flushed yet.
        unsafe { entry.write_volatile(other | ALL | global | bits) };
        let flushed = flush();
        let seen = access(Mode::Kernel, READ).after.rax & 0xff;
        pages::write(entry, target | ALL);
        trial::kernel(&[0x0f, 0x01, 0x3f], pages::at(TARGET));
        (flushed, seen)
    };
    let same = pages::cr3();
    let invlpg = || trial::kernel(&[0x0f, 0x01, 0x3f], pages::at(TARGET) + 0x123);
    let toggle = |bit: u64| {
        move || {
            let seen = set_cr4(cr4() ^ bit);
            set_cr4(cr4() ^ bit);
            seen
        }
    };
    for (pge, global) in [(0, 0), (0, GLOBAL), (control::PGE, 0), (control::PGE, GLOBAL)] {
        set_cr4(before & !control::PGE | pge);
        let on = u8::from(pge != 0);
        let kind = if global == 0 { "a page" } else { "a global page" };
        let say = |how: &str, (flushed, seen): (Outcome, u64)| {
            fact!("paging: PGE={on}: {kind} after {how}"; "{flushed}, {seen:#x}");
        };
        say("INVLPG", reads_after(global, &invlpg));
        if pge == 0 || global == 0 {
            say("MOV CR3", reads_after(global, &|| set_cr3(same)));
        }
        say("a change of PGE", reads_after(global, &toggle(control::PGE)));
        if has(control::HAS_INVPCID) {
            for kind in [0, 2, 3] {
                let by = || invpcid(kind, 0, pages::at(TARGET));
                if kind != 3 || pge == 0 || global == 0 {
                    say(
                        [
                            "INVPCID of an address",
                            "",
                            "INVPCID of all",
                            "INVPCID of all but global ones",
                        ][kind as usize],
                        reads_after(global, &by),
                    );
                }
            }
        }
    }
    set_cr4(before | control::PGE);
    let paging = || {
        let write_protect = set_cr0(cr0() ^ control::WP);
        set_cr0(cr0() ^ control::WP);
        set_cr3(same);
        write_protect
    };
    let (_, seen) = reads_after(0, &paging);
    fact!("paging: a page after changes of WP and MOV CR3"; "{seen:#x}");
    if has(control::HAS_SMEP) {
        let (_, seen) = reads_after(GLOBAL, &toggle(control::SMEP | control::PGE));
        fact!("paging: a global page after a change of SMEP and PGE"; "{seen:#x}");
    }
    set_cr4(before);
    fact!("paging: INVLPG of no address, at CPL 3"; "{}, {}",
        trial::kernel(&[0x0f, 0x01, 0x3f], NOT_CANONICAL), trial::user(&[0x0f, 0x01, 0x3f], 0));
    fact!("paging: INVLPG of a page that is not there"; "{}", trial::kernel(&[0x0f, 0x01, 0x3f], pages::at(pages::HOLE)));
}

fn invpcid(kind: u64, pcid: u64, address: u64) -> Outcome {
    let descriptor = pages::data(OTHER).wrapping_add(64).cast::<u64>();
    // SAFETY: the other page's data.
    unsafe { descriptor.write_volatile(pcid) };
    // SAFETY: as above.
    unsafe { descriptor.wrapping_add(1).write_volatile(address) };
    let registers = Registers { rdi: descriptor as u64, rsi: kind, ..Registers::default() };
    trial::run(Mode::Kernel, INVPCID, registers)
}

pub(super) fn pcids() {
    if has(control::HAS_INVPCID) {
        for kind in 0..6 {
            fact!("paging: INVPCID {kind}"; "{}", invpcid(kind, 0, pages::at(TARGET)));
            fact!("paging: INVPCID {kind} of PCID 1 and of a bit above"; "{}, {}",
                invpcid(kind, 1, pages::at(TARGET)), invpcid(kind, 1 << 12, 0));
            fact!("paging: INVPCID {kind} of no address"; "{}", invpcid(kind, 0, NOT_CANONICAL));
        }
        fact!("paging: INVPCID of a kind above 32 bits"; "{}", invpcid(1 << 32, 0, 0));
        fact!("paging: INVPCID at CPL 3"; "{}", trial::user(INVPCID, pages::at(OTHER)));
        fact!("paging: INVPCID with a descriptor in no page"; "{}", trial::kernel(INVPCID, pages::at(pages::HOLE)));
        fact!("paging: INVPCID with a descriptor where no address is"; "{}", trial::kernel(INVPCID, NOT_CANONICAL));
    }
    if !has(control::HAS_PCID) {
        return;
    }
    let (root, before) = (pages::cr3(), cr4());
    set_cr3(root | 0x18);
    fact!("paging: PCIDE while CR3 has PCD and PWT"; "{}", set_cr4(before | control::PCIDE));
    set_cr4(before);
    set_cr3(root);
    fact!("paging: CR3 with bit 63, PCIDE=0"; "{}", set_cr3(root | 1 << 63));
    set_cr3(root);
    fact!("paging: PCIDE"; "{}", set_cr4(before | control::PCIDE));
    let seen = set_cr3(root | 5);
    fact!("paging: CR3 with PCID 5"; "{seen}, {:#x}", pages::cr3() & 0xfff);
    let seen = set_cr3(root | 5 | 1 << 63);
    fact!("paging: CR3 with PCID 5 and bit 63"; "{seen}, {}", pages::cr3() == root | 5);
    fact!("paging: CR3 with bits 62 and 63"; "{}", set_cr3(root | 3 << 62));
    set_cr3(root | 5);
    fact!("paging: PCIDE off while CR3 has a PCID"; "{}, {:#x}", set_cr4(before), pages::cr3() & 0xfff);
    set_cr4(before | control::PCIDE);
    if has(control::HAS_INVPCID) {
        for kind in 0..4 {
            fact!("paging: PCIDE=1: INVPCID {kind} of PCID 5, of 0xfff"; "{}, {}", invpcid(kind, 5, 0), invpcid(kind, 0xfff, 0));
        }
    }
    of_two_spaces(root);
    set_cr3(root);
    set_cr4(before);
}

/// A page that becomes another while the other PCID is in use: what must be flushed is.
fn of_two_spaces(root: u64) {
    let entry = pages::entry(Level::Pte);
    let [target, other] = [TARGET, OTHER].map(|page| pages::data(page) as u64);
    let reads_after = |flush: &dyn Fn()| {
        set_cr3(root | 5);
        access(Mode::Kernel, READ);
        set_cr3(root | 6);
        // SAFETY: the page's entry; nothing of PCID 5 is flushed yet.
        unsafe { entry.write_volatile(other | ALL) };
        flush();
        let seen = access(Mode::Kernel, READ).after.rax & 0xff;
        set_cr3(root | 5);
        // SAFETY: as above.
        unsafe { entry.write_volatile(target | ALL) };
        set_cr3(root | 5);
        seen
    };
    let to_5 = |bit: u64| set_cr3(root | 5 | bit);
    fact!("paging: MOV CR3 of PCID 5 flushes it"; "{:#x}", reads_after(&|| { to_5(0); }));
    if has(control::HAS_INVPCID) {
        for (name, kind) in
            [("an address", 0), ("a PCID", 1), ("all", 2), ("all but global ones", 3)]
        {
            let seen = reads_after(&|| {
                invpcid(kind, 5, pages::at(TARGET));
                to_5(1 << 63);
            });
            fact!("paging: INVPCID of {name} flushes PCID 5"; "{seen:#x}");
        }
    }
    let seen = reads_after(&|| {
        set_cr4(cr4() ^ control::PGE);
        set_cr4(cr4() ^ control::PGE);
        to_5(1 << 63);
    });
    fact!("paging: a change of PGE flushes PCID 5"; "{seen:#x}");
}
