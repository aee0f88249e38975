//! A guest's memory: bytes, where an address leads, and the gates of an IDT.

use alloc::format;
use alloc::vec::Vec;

use arch::address::PAGE_SIZE;
use arch::gate::GateFormat;
use arch::machine::{GuestMemory, NotGuestMemory};
use arch::{Gpa, Gva, Vector};
use view::gates::{Gate, GateBytes};
use view::paging::{self, Backing};
use view::registers::Snapshot;
use view::{Lines, gates, hex, symbols};

use super::GuestControl;

/// A guest's RAM, to be read.
struct Ram<'a>(&'a dyn GuestControl);

impl GuestMemory for Ram<'_> {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.0.read(gpa, bytes)
    }

    fn write(&mut self, gpa: Gpa, _: &[u8]) -> Result<(), NotGuestMemory> {
        Err(NotGuestMemory(gpa))
    }
}

/// One byte, if it is the guest's RAM.
fn byte(guest: &dyn GuestControl, gpa: Gpa) -> Option<u8> {
    let mut byte = [0];
    guest.read(gpa, &mut byte).ok().map(|()| byte[0])
}

/// Bytes by guest-physical address.
pub(super) fn memory(guest: &dyn GuestControl, start: Gpa, count: u64) -> Lines {
    let bytes: Vec<_> =
        (0..count).map(|at| byte(guest, Gpa::new(start.as_u64().wrapping_add(at)))).collect();
    let name = guest.name();
    let mut lines = Vec::from([format!("{name}: guest-physical {start}")]);
    if bytes.iter().all(Option::is_none) {
        lines.push("  none of it is the guest's RAM".into());
    } else {
        lines.extend(indented(hex::dump(start.as_u64(), &bytes)));
    }
    lines
}

/// Bytes by linear address, through the tables of a CPU.
pub(super) fn linear(
    who: &str,
    guest: &dyn GuestControl,
    cpu: &Snapshot,
    start: u64,
    count: u64,
) -> Lines {
    let bytes = linear_bytes(guest, cpu, start, count);
    let mut lines = Vec::from([format!("{who}: linear {start:#x}")]);
    if bytes.iter().all(Option::is_none) {
        lines.push("  none of it is mapped to the guest's RAM: `walk` shows why".into());
    } else {
        lines.extend(indented(hex::dump(start, &bytes)));
    }
    lines
}

fn linear_bytes(
    guest: &dyn GuestControl,
    cpu: &Snapshot,
    start: u64,
    count: u64,
) -> Vec<Option<u8>> {
    let page = |at: u64| cpu.paging.translate(&Ram(guest), Gva::new(at & !(PAGE_SIZE - 1))).ok();
    let mut known = (start, page(start));
    let mut one = |offset: u64| {
        let at = start.wrapping_add(offset);
        if at.is_multiple_of(PAGE_SIZE) {
            known = (at, page(at));
        }
        byte(guest, known.1?.wrapping_add(at & (PAGE_SIZE - 1)))
    };
    (0..count).map(&mut one).collect()
}

/// Where a linear address leads.
pub(super) fn walk(who: &str, guest: &dyn GuestControl, cpu: &Snapshot, address: u64) -> Lines {
    let walked = paging::walk(who, cpu.paging, &Ram(guest), Gva::new(address));
    let mut lines = walked.lines;
    if let Some(gpa) = walked.gpa {
        let nested = guest.nested(gpa);
        let in_ram = byte(guest, gpa).is_some();
        let place = Backing::new(in_ram, nested.is_some(), nested.is_some_and(|(_, own)| own));
        lines.extend(paging::nested(gpa, nested.map(|(mapping, _)| mapping), place));
    }
    lines
}

/// Where its Linux has put itself.
pub(super) fn kaslr(who: &str, guest: &dyn GuestControl, cpu: &Snapshot) -> alloc::string::String {
    cpu.kaslr_line(who, &Ram(guest))
}

/// The IDT that a CPU has loaded.
pub(super) fn gates(who: &str, guest: &dyn GuestControl, cpu: &Snapshot) -> Lines {
    const LMA: u64 = 1 << 10;
    const PE: u64 = 1;
    let idtr = cpu.idtr();
    if cpu.paging.cr0 & PE == 0 {
        return [format!("{who}: real mode: its interrupt table has no gates")].into();
    }
    let format = if cpu.paging.efer & LMA == 0 { GateFormat::Bits32 } else { GateFormat::Bits64 };
    let count = (usize::from(idtr.limit) + 1).min(256 * format.size()) / format.size();
    let gates: Vec<Gate> = (0..count)
        .map(|vector| {
            let at = idtr.base.wrapping_add((vector * format.size()) as u64);
            let bytes = |read: &dyn Fn(Gpa, &mut [u8]) -> bool| bytes(guest, cpu, at, format, read);
            Gate {
                own: bytes(&|gpa, to| guest.read(gpa, to).is_ok()),
                seen: bytes(&|gpa, to| guest.seen(gpa, to)),
                granted: guest.granted(Vector(vector as u8)),
            }
        })
        .collect();
    gates::table(&format!("{who}: IDT at {}", idtr.base), format, &gates)
}

/// A gate's bytes, byte by byte: it may straddle two pages.
fn bytes(
    guest: &dyn GuestControl,
    cpu: &Snapshot,
    at: Gva,
    format: GateFormat,
    read: &dyn Fn(Gpa, &mut [u8]) -> bool,
) -> Option<GateBytes> {
    let mut gate = GateBytes::default();
    let start = cpu.paging.translate(&Ram(guest), at).ok()?;
    let whole = at.page_offset() + format.size() as u64 <= PAGE_SIZE;
    if whole {
        return read(start, gate.get_mut(..format.size())?).then_some(gate);
    }
    for (offset, byte) in gate.iter_mut().take(format.size()).enumerate() {
        let gpa = cpu.paging.translate(&Ram(guest), at.wrapping_add(offset as u64)).ok()?;
        if !read(gpa, core::slice::from_mut(byte)) {
            return None;
        }
    }
    Some(gate)
}

/// The quadwords at the top of a CPU's stack.
pub(super) fn stack(guest: &dyn GuestControl, cpu: &Snapshot) -> Lines {
    /// So many bytes of it.
    const BYTES: u64 = 128;
    indented(hex::dump(cpu.stack(), &linear_bytes(guest, cpu, cpu.stack(), BYTES))).collect()
}

/// Which functions RIP and the words on the stack are in, where the guest has a file with their names.
pub(super) fn names(guest: &dyn GuestControl, cpu: &Snapshot) -> Lines {
    /// So many bytes of the stack are looked at.
    const BYTES: u64 = 1024;
    let Some(list) = guest.symbols() else { return Lines::new() };
    let bytes: Vec<u8> =
        linear_bytes(guest, cpu, cpu.stack(), BYTES).into_iter().map_while(|byte| byte).collect();
    let words: Vec<u64> =
        bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    symbols::names(cpu, list, &Ram(guest), &words)
}

fn indented(lines: Lines) -> impl Iterator<Item = alloc::string::String> {
    lines.into_iter().map(|line| format!("  {line}"))
}
