//! gdb's `monitor` commands, and those by which `nexit dump` reads a guest's RAM.

use alloc::vec::Vec;
use core::convert::Infallible;

use arch::Gpa;
use arch::vcpu::DebugRegisters;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, outputln};
use insn::linux::{LINUX_TEXT, linux_text};

use crate::pack::{PAGE, pack};
use crate::registers::Registers;
use crate::session::Guest;
use crate::target::{Debugged, thread};

/// So many bytes are shown at most, and in a line.
const MAX_BYTES: u64 = 1024;
const LINE: u64 = 16;
/// So many pages are looked at for one answer, and about so many bytes given, as a packet of gdb's has.
const MAX_PAGES: u64 = 1024;
const ENOUGH: usize = 2048;

const HELP: &str = "monitor phys ADDRESS [BYTES]: bytes at a guest-physical address\n\
                    monitor ram: the ranges of the guest's RAM\n\
                    monitor own: the guest's own debug registers, which wait while gdb has breakpoints\n\
                    monitor kaslr: where a 64-bit Linux has put itself";

impl<G: Guest> MonitorCmd for Debugged<G> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Infallible> {
        let text = core::str::from_utf8(command).unwrap_or_default();
        let mut words = text.split_whitespace();
        let name = words.next();
        let mut number = || words.next().map(number);
        match (name, number(), number()) {
            (Some("phys"), Some(Some(at)), bytes @ (None | Some(Some(1..=MAX_BYTES)))) => {
                self.physical(at, bytes.flatten().unwrap_or(LINE), &mut out);
            }
            (Some("ram"), None, None) => {
                for (start, length) in self.guest.ram() {
                    outputln!(out, "{:#x} {length:#x}", start.as_u64());
                }
            }
            (Some("own"), None, None) => self.own_debug_registers(&mut out),
            (Some("kaslr"), None, None) => match self.linux_text() {
                Some(text) => {
                    let offset = text.wrapping_sub(LINUX_TEXT);
                    outputln!(
                        out,
                        "Linux' text is at {text:#x}: add-symbol-file vmlinux -o {offset:#x}"
                    );
                }
                None => outputln!(out, "no CPU has tables and system calls of a 64-bit Linux now"),
            },
            (Some("pages"), Some(Some(first)), None) => out.write_raw(&self.pages(first)),
            _ => outputln!(out, "{HELP}"),
        }
        Ok(())
    }
}

impl<G: Guest> Debugged<G> {
    fn linux_text(&mut self) -> Option<u64> {
        (0..self.guest.cpus()).find_map(|cpu| {
            let read = |registers: &Registers| (registers.paging, registers.calls.lstar);
            let (paging, system_calls) = self.read_register(thread(cpu), read)?;
            linux_text(paging, system_calls, self.guest.memory())
        })
    }

    fn own_debug_registers(&mut self, out: &mut ConsoleOutput<'_>) {
        for cpu in 0..self.guest.cpus() {
            let own = self.read_register(thread(cpu), |registers| registers.debug);
            if let Some(DebugRegisters { addresses: [dr0, dr1, dr2, dr3], status, control }) = own {
                outputln!(
                    out,
                    "CPU {cpu}: DR0 {dr0:#x}, DR1 {dr1:#x}, DR2 {dr2:#x}, DR3 {dr3:#x}, DR6 {status:#x}, DR7 {control:#x}"
                );
            }
        }
    }

    fn physical(&mut self, at: u64, bytes: u64, out: &mut ConsoleOutput<'_>) {
        for offset in (0..bytes).step_by(LINE as usize) {
            let mut line = [0; LINE as usize];
            let gpa = Gpa::new(at.wrapping_add(offset));
            let part = line.get_mut(..(bytes - offset).min(LINE) as usize).unwrap_or_default();
            match self.read_physical(gpa, part) {
                Ok(()) => outputln!(out, "{gpa}: {part:02x?}"),
                Err(error) => outputln!(out, "{error}"),
            }
        }
    }

    /// Pages from this one on that are not all zero: of each its number (four bytes), its length packed (two), and it. At
    /// the end the page to ask for next, with no length.
    fn pages(&mut self, first: u64) -> Vec<u8> {
        let (mut answer, mut page) = (Vec::new(), [0; PAGE]);
        let mut next = first;
        while next < first.saturating_add(MAX_PAGES) && answer.len() < ENOUGH {
            let gpa = Gpa::new(next.wrapping_mul(PAGE as u64));
            let is_ram = self.read_physical(gpa, &mut page).is_ok();
            if is_ram && page.iter().any(|byte| *byte != 0) {
                answer.extend_from_slice(&(next as u32).to_le_bytes());
                let length_at = answer.len();
                answer.extend_from_slice(&[0; 2]);
                pack(&page, &mut answer);
                let length = (answer.len() - length_at - 2) as u16;
                if let Some(place) = answer.get_mut(length_at..length_at + 2) {
                    place.copy_from_slice(&length.to_le_bytes());
                }
            }
            next += 1;
        }
        answer.extend_from_slice(&(next as u32).to_le_bytes());
        answer.extend_from_slice(&[0; 2]);
        answer
    }
}

/// Decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
