//! Paging: errors at each level, reserved bits, accessed and dirty bits, what must be flushed, PCIDs, and memory types.

mod flushes;
mod types;

use payload::fact;

use crate::control::{self, cr0, cr4, has, set_cr0, set_cr3, set_cr4};
use crate::pages::{
    self, ACCESSED, ALL, DIRTY, HUGE, LARGE, Level, NO_EXECUTE, OTHER, PRESENT, SIZE, TARGET, USER,
    WRITE,
};
use crate::trial::{self, Mode, Outcome, Registers};

const READ: &[u8] = &[0x8a, 0x07]; // MOV AL, [RDI]
const STORE: &[u8] = &[0x88, 0x07]; // MOV [RDI], AL
const FETCH: &[u8] = &[0xff, 0xd7]; // CALL RDI
const NOT_CANONICAL: u64 = 0x8000_0000_0000;
const EFER: u32 = 0xc000_0080;
const NXE: u64 = 1 << 11;
const HAS_LARGE_PAGES: control::Feature = (0x8000_0001, 3, 26);
/// Bit of a page fault's error code.
const RESERVED: u64 = 1 << 3;

pub(crate) fn all() {
    let before = cr0();
    set_cr0(before | control::WP);
    // Another byte than the target's.
    // SAFETY: the page's data.
    unsafe { pages::data(OTHER).write_volatile(0x5a) };
    levels();
    reserved();
    no_execute();
    accessed_and_dirty();
    large();
    flushes::flushes();
    addresses();
    cr3();
    flushes::pcids();
    types::all();
    set_cr0(before);
}

fn access(mode: Mode, code: &[u8]) -> Outcome {
    if code == FETCH {
        // SAFETY: a RET in the target's data.
        unsafe { pages::data(TARGET).write_volatile(0xc3) };
    }
    trial::run(mode, code, Registers { rdi: pages::at(TARGET), ..Registers::default() })
}

/// With an entry changed for a while.
fn with<T>(entry: *mut u64, value: u64, work: impl FnOnce() -> T) -> T {
    let before = pages::read(entry);
    pages::write(entry, value);
    let result = work();
    pages::write(entry, before);
    result
}

/// Rights that one level alone takes away.
fn levels() {
    for (level, name) in Level::EVERY {
        let entry = pages::entry(level);
        let usual = pages::read(entry);
        for (what, value) in [
            ("not present", usual & !PRESENT),
            ("read-only", usual & !WRITE),
            ("of the supervisor", usual & !USER),
            ("not to be fetched from", usual | NO_EXECUTE),
        ] {
            for (mode, cpl) in [(Mode::Kernel, 0), (Mode::User, 3)] {
                // The code of CPL 3 goes the same way down, but for the last step.
                if mode == Mode::User && level != Level::Pte && what != "read-only" {
                    continue;
                }
                let [read, write, fetch] =
                    with(entry, value, || [READ, STORE, FETCH].map(|code| access(mode, code)));
                fact!("paging: {name} {what}, CPL {cpl}: read, write, fetch"; "{read}, {write}, {fetch}");
            }
        }
    }
}

/// Bits of an entry that are reserved: those of the address that memory may have are not tried.
fn reserved() {
    let width = control::register(0x8000_0008, 0, 0) & 0xff;
    fact!("paging: bits of a physical address"; "{width}");
    let tried: u64 = 0xfff | !((1 << width) - 1);
    let mask = |entry: *mut u64, address: u64| {
        let usual = pages::read(entry);
        (0..64).filter(|bit| tried >> bit & 1 != 0).fold(0u64, |mask, bit| {
            // PS makes another page of it.
            let changed = usual | 1 << bit;
            let seen = with(entry, changed, || trial::kernel(READ, address));
            let is = seen.after.vector == 14 && seen.after.error & RESERVED != 0;
            mask | u64::from(is) << bit
        })
    };
    for (level, name) in Level::EVERY {
        fact!("paging: bits that are reserved in a {name}"; "{:#x}", mask(pages::entry(level), pages::at(TARGET)));
    }
    pages::write(pages::large_entry(), ALL | SIZE);
    fact!("paging: bits that are reserved in a PDE of 2 MiB"; "{:#x}", mask(pages::large_entry(), LARGE));
    let low = (13..21).fold(0u64, |mask, bit| {
        let seen = with(pages::large_entry(), ALL | SIZE | 1 << bit, || trial::kernel(READ, LARGE));
        mask | (seen.after.error & RESERVED) >> 3 << bit
    });
    fact!("paging: address bits that are reserved in a PDE of 2 MiB"; "{low:#x}");
    let entry = pages::entry(Level::Pte);
    let usual = pages::read(entry);
    let highest = 1 << 51;
    if width < 52 {
        let seen = with(entry, usual | highest, || {
            [
                (Mode::Kernel, READ),
                (Mode::Kernel, STORE),
                (Mode::Kernel, FETCH),
                (Mode::User, READ),
                (Mode::User, FETCH),
            ]
            .map(|(mode, code)| access(mode, code).after.error)
        });
        fact!("paging: bit 51 of a PTE: read, write, fetch, CPL 3 reads, fetches"; "{seen:x?}");
        let seen = with(entry, highest, || access(Mode::Kernel, READ));
        fact!("paging: bit 51 of a PTE that is not present"; "{seen}");
        let seen = with(entry, PRESENT | highest, || access(Mode::User, STORE));
        fact!("paging: bit 51 of a PTE that forbids as well"; "{seen}");
    }
    if has(HAS_LARGE_PAGES) {
        pages::write(pages::huge_entry(), ALL | SIZE);
        fact!("paging: bits that are reserved in a PDPTE of 1 GiB"; "{:#x}", mask(pages::huge_entry(), HUGE));
        let low = (13..30).fold(0u64, |mask, bit| {
            let seen =
                with(pages::huge_entry(), ALL | SIZE | 1 << bit, || trial::kernel(READ, HUGE));
            mask | (seen.after.error & RESERVED) >> 3 << bit
        });
        fact!("paging: address bits that are reserved in a PDPTE of 1 GiB"; "{low:#x}");
    } else {
        let seen = with(pages::huge_entry(), ALL | SIZE, || trial::kernel(READ, HUGE));
        fact!("paging: a page of 1 GiB, not announced"; "{seen}");
    }
}

/// EFER.NXE = 0.
fn no_execute() {
    let efer = control::read_msr(EFER).or_zero();
    let seen = control::write_msr(EFER, efer & !NXE);
    fact!("paging: EFER without NXE"; "{seen}");
    let entry = pages::entry(Level::Pte);
    let usual = pages::read(entry);
    let seen = with(entry, usual | NO_EXECUTE, || {
        [(Mode::Kernel, READ), (Mode::User, READ), (Mode::User, FETCH)]
            .map(|(mode, code)| access(mode, code).after.error)
    });
    fact!("paging: NXE=0: bit 63 of a PTE: CPL 0 reads, CPL 3 reads, fetches"; "{seen:x?}");
    let fetch = with(entry, usual & !PRESENT, || access(Mode::User, FETCH));
    fact!("paging: NXE=0: a fetch from a page that is not there"; "{fetch}");
    let before = cr4();
    if has(control::HAS_SMEP) {
        set_cr4(before | control::SMEP);
        fact!("paging: NXE=0, SMEP=1: CPL 0 fetches from a user page"; "{}", access(Mode::Kernel, FETCH));
        let absent = with(entry, usual & !PRESENT, || access(Mode::Kernel, FETCH));
        fact!("paging: NXE=0, SMEP=1: a fetch from a page that is not there"; "{absent}");
        set_cr4(before);
    }
    control::write_msr(EFER, efer);
    fact!("paging: EFER with LME changed"; "{}", control::write_msr(EFER, efer ^ 1 << 8));
    fact!("paging: EFER with LMA changed"; "{}", control::write_msr(EFER, efer ^ 1 << 10));
    control::write_msr(EFER, efer);
}

/// What the CPU notes in the entries.
fn accessed_and_dirty() {
    const BITS: u64 = ACCESSED | DIRTY;
    let clear = || {
        for (level, _) in Level::EVERY {
            let entry = pages::entry(level);
            pages::write(entry, pages::read(entry) & !BITS);
        }
    };
    let noted = || Level::EVERY.map(|(level, _)| (pages::read(pages::entry(level)) & BITS) >> 5);
    for (what, code) in
        [("read", READ), ("write", STORE), ("fetch", FETCH), ("LOCK INC", &[0xf0, 0xfe, 0x07])]
    {
        clear();
        access(Mode::Kernel, code);
        fact!("paging: A and D of PML4E, PDPTE, PDE, PTE after a {what}"; "{:?}", noted());
    }
    let entry = pages::entry(Level::Pte);
    clear();
    let usual = pages::read(entry);
    pages::write(entry, usual & !WRITE);
    access(Mode::Kernel, STORE);
    fact!("paging: A and D after a write that is forbidden"; "{:?}", noted()[3]);
    pages::write(entry, usual & !USER);
    access(Mode::User, READ);
    fact!("paging: A and D after a read that is forbidden"; "{:?}", noted()[3]);
    pages::write(entry, usual);
    trial::kernel(&[0x0f, 0x18, 0x0f, 0x0f, 0x01, 0x3f], pages::at(TARGET));
    access(Mode::Kernel, READ);
    access(Mode::Kernel, STORE);
    fact!("paging: D after a read and then a write"; "{:?}", noted()[3]);
    // The stack's page, by a PUSH.
    let stack = pages::page_entry(pages::STACK);
    pages::write(stack, pages::read(stack) & !BITS);
    trial::user(&[0x50], 0);
    fact!("paging: A and D of the stack's page after a PUSH"; "{}", (pages::read(stack) & BITS) >> 5);
    pages::write(stack, pages::read(stack) & !BITS);
    trial::user(&[0x58], 0);
    fact!("paging: A and D of the stack's page after a POP"; "{}", (pages::read(stack) & BITS) >> 5);
    // CMPXCHG that does not match writes all the same.
    clear();
    trial::run(
        Mode::Kernel,
        &[0x0f, 0xb0, 0x0f],
        Registers { rdi: pages::at(TARGET), rax: 0x77, ..Registers::default() },
    );
    fact!("paging: A and D after a CMPXCHG that does not match"; "{:?}", noted()[3]);
}

/// Pages of 2 MiB and 1 GiB.
fn large() {
    let place = pages::data(OTHER) as u64;
    for (name, entry, address, there) in [
        ("2 MiB", pages::large_entry(), LARGE, true),
        ("1 GiB", pages::huge_entry(), HUGE, has(HAS_LARGE_PAGES)),
    ] {
        if !there {
            continue;
        }
        let size = if name == "2 MiB" { 2 << 20 } else { 1 << 30 };
        let base = place & !(size - 1);
        pages::write(entry, base | ALL | SIZE);
        let at = address + (place - base);
        let seen = trial::kernel(READ, at);
        fact!("paging: a page of {name}: reads"; "{seen}, {:#x}, {:#x}", seen.after.rax & 0xff, (pages::read(entry) & 0x60) >> 5);
        trial::kernel(STORE, at + 1);
        fact!("paging: a page of {name}: D"; "{:#x}", (pages::read(entry) & 0x60) >> 5);
        pages::write(entry, base | PRESENT | USER | SIZE | NO_EXECUTE);
        let [read, write, fetch] = [READ, STORE, FETCH].map(|code| trial::kernel(code, address));
        fact!("paging: a page of {name}, for reading: read, write, fetch"; "{read}, {write}, {fetch}");
        pages::write(entry, base | PRESENT | WRITE | SIZE);
        fact!("paging: a page of {name}, of the supervisor: CPL 3 reads"; "{}", trial::user(READ, address));
        pages::write(entry, 0);
        fact!("paging: a page of {name}, not present"; "{}", trial::kernel(READ, address));
    }
}

/// Addresses that are none.
fn addresses() {
    fact!("paging: a read where no address is"; "{}", trial::kernel(READ, NOT_CANONICAL));
    fact!("paging: a write where no address is"; "{}", trial::user(STORE, NOT_CANONICAL));
    fact!("paging: a jump to where no address is"; "{}", trial::kernel(&[0xff, 0xe7], NOT_CANONICAL));
    fact!("paging: a call to where no address is"; "{}", trial::kernel(FETCH, NOT_CANONICAL));
    let stack = |code: &[u8], rsp| {
        trial::run(Mode::Kernel, code, Registers { rsp, ..Registers::default() })
    };
    fact!("paging: a PUSH, a POP, a CALL where no address is"; "{}, {}, {}",
        stack(&[0x50], NOT_CANONICAL + 64), stack(&[0x58], NOT_CANONICAL + 64), stack(&[0xe8, 0, 0, 0, 0], NOT_CANONICAL + 64));
    let base = trial::run(
        Mode::Kernel,
        &[0x8a, 0x45, 0],
        Registers { rbp: NOT_CANONICAL, ..Registers::default() },
    );
    fact!("paging: a read by RBP where no address is"; "{base}");
    fact!("paging: a read across the end of the lower half"; "{}", trial::kernel(&[0x48, 0x8b, 0x07], NOT_CANONICAL - 4));
    fact!("paging: a read across two pages, the second not there"; "{}",
        trial::kernel(&[0x48, 0x8b, 0x07], pages::at(pages::HOLE) - 4));
    fact!("paging: a write across two pages, the second not there"; "{}",
        trial::user(&[0x48, 0x89, 0x07], pages::at(pages::HOLE) - 4));
}

fn cr3() {
    let before = pages::cr3();
    for (name, value) in
        [("PCD and PWT", before | 0x18), ("bit 0", before | 1), ("bits 5 to 11", before | 0xfe0)]
    {
        let seen = set_cr3(value);
        let kept = pages::cr3() ^ before;
        set_cr3(before);
        fact!("paging: CR3 with {name}"; "{seen}, {kept:#x}");
    }
    if control::qemu() {
        return;
    }
    let width = control::register(0x8000_0008, 0, 0) & 0xff;
    let bits = (width..64).fold(0u64, |mask, bit| {
        let seen = set_cr3(before | 1 << bit);
        set_cr3(before);
        mask | u64::from(!seen.fine()) << bit
    });
    fact!("paging: bits of CR3 that are refused"; "{bits:#x}");
}
