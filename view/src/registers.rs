//! A virtual CPU's registers: taken where it exits, read by a person later.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use arch::machine::GuestMemory;
use arch::msr;
use arch::register::Gpr;
use arch::segment::{DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{DebugRegisters, SystemCallMsrs, Vcpu};
use insn::linux::{LINUX_TEXT, linux_text};
use insn::{MAX_LENGTH, PagingRegisters};

use crate::flags::words;
use crate::{Lines, hex};

/// What a virtual CPU holds. A copy: the CPU goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// General registers in encoding order.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// What says how addresses are translated.
    pub paging: PagingRegisters,
    /// Where the last page fault was.
    pub cr2: u64,
    /// In the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    /// GDTR and IDTR, as the guest has loaded them.
    pub tables: [DescriptorTable; 2],
    /// Debug registers.
    pub debug: DebugRegisters,
    /// What system calls go by.
    pub calls: SystemCallMsrs,
    /// Current privilege level.
    pub cpl: u8,
    /// It halts until an interrupt comes.
    pub halted: bool,
    /// The bytes at RIP, and how many could be read.
    pub code: ([u8; MAX_LENGTH], usize),
}

impl Snapshot {
    /// That of a virtual CPU between an exit and the next entry.
    #[must_use]
    pub fn of(vcpu: &impl Vcpu, memory: &impl GuestMemory) -> Self {
        use DescriptorTableRegister::{Gdtr, Idtr};
        Self {
            general: Gpr::ALL.map(|register| vcpu.gpr(register)),
            rip: vcpu.rip(),
            rflags: vcpu.rflags(),
            paging: PagingRegisters {
                cr0: vcpu.cr0(),
                cr3: vcpu.cr3(),
                cr4: vcpu.cr4(),
                efer: vcpu.efer(),
            },
            cr2: vcpu.cr2(),
            segments: SegmentRegister::ALL.map(|register| vcpu.segment(register)),
            tables: [Gdtr, Idtr].map(|register| vcpu.descriptor_table(register)),
            debug: vcpu.debug_registers(),
            calls: vcpu.system_call_msrs(),
            cpl: vcpu.cpl(),
            halted: vcpu.halted() == Some(true),
            code: insn::fetch_instruction(vcpu, memory).unwrap_or_default(),
        }
    }

    /// RSP.
    #[must_use]
    pub const fn stack(&self) -> u64 {
        self.general[Gpr::Rsp as usize]
    }

    /// The linear address of the code at RIP.
    #[must_use]
    pub const fn code_address(&self) -> u64 {
        let code = &self.segments[SegmentRegister::Cs as usize];
        // In 64-bit mode the base is 0.
        if code.access.long() { self.rip } else { code.base.wrapping_add(self.rip) }
    }

    #[must_use]
    pub const fn idtr(&self) -> DescriptorTable {
        self.tables[1]
    }

    /// The guest has loaded a longer IDT than the CPU reads.
    pub const fn set_idt_limit(&mut self, limit: u16) {
        self.tables[1].limit = limit;
    }

    /// An MSR of the guest's, where it is part of this.
    #[must_use]
    pub fn msr(&self, address: u64) -> Option<(&'static str, u64)> {
        let base = |which: SegmentRegister| self.segments.get(which as usize).map(|it| it.base);
        let SystemCallMsrs { star, lstar, cstar, fmask, kernel_gs_base, sysenter } = self.calls;
        let [sysenter_cs, sysenter_esp, sysenter_eip] = sysenter;
        let (name, value) = match u32::try_from(address).ok()? {
            msr::IA32_SYSENTER_CS => ("IA32_SYSENTER_CS", sysenter_cs),
            msr::IA32_SYSENTER_ESP => ("IA32_SYSENTER_ESP", sysenter_esp),
            msr::IA32_SYSENTER_EIP => ("IA32_SYSENTER_EIP", sysenter_eip),
            msr::IA32_EFER => ("IA32_EFER", self.paging.efer),
            msr::IA32_STAR => ("IA32_STAR", star),
            msr::IA32_LSTAR => ("IA32_LSTAR", lstar),
            msr::IA32_CSTAR => ("IA32_CSTAR", cstar),
            msr::IA32_FMASK => ("IA32_FMASK", fmask),
            msr::IA32_FS_BASE => ("IA32_FS_BASE", base(SegmentRegister::Fs)?),
            msr::IA32_GS_BASE => ("IA32_GS_BASE", base(SegmentRegister::Gs)?),
            msr::IA32_KERNEL_GS_BASE => ("IA32_KERNEL_GS_BASE", kernel_gs_base),
            _ => return None,
        };
        Some((name, value))
    }

    /// The line of the same; `who` it is.
    #[must_use]
    pub fn msr_line(&self, who: &str, address: u64) -> String {
        match self.msr(address) {
            Some((name, value)) => format!("{who}: MSR {address:#x}, {name}: {value:016x}"),
            None => format!(
                "{who}: MSR {address:#x} is not of its state: that are 174 to 176, c0000080 to c0000084 and \
                 c0000100 to c0000102"
            ),
        }
    }

    /// Where its Linux has put itself; `who` it is.
    #[must_use]
    pub fn kaslr_line(&self, who: &str, memory: &impl GuestMemory) -> String {
        match linux_text(self.paging, self.calls.lstar, memory) {
            Some(text) => format!(
                "{who}: Linux' text is at {text:#x}, {:#x} from where its symbols have it",
                text.wrapping_sub(LINUX_TEXT)
            ),
            None => format!("{who}: its tables and system calls are no 64-bit Linux' now"),
        }
    }

    fn mode(&self) -> &'static str {
        const PE: u64 = 1;
        const LMA: u64 = 1 << 10;
        const VM: u64 = 1 << 17;
        let code = self.segments[SegmentRegister::Cs as usize].access;
        match () {
            () if self.paging.cr0 & PE == 0 => "real mode",
            () if self.rflags & VM != 0 => "virtual-8086 mode",
            () if self.paging.efer & LMA != 0 && code.long() => "64-bit",
            () if code.default_32() => "32-bit",
            () => "16-bit",
        }
    }

    /// All of it; `who` it is.
    #[must_use]
    pub fn lines(&self, who: &str) -> Lines {
        const IF: u64 = 1 << 9;
        let interrupts = if self.rflags & IF == 0 { "off" } else { "on" };
        let halted = if self.halted { ", halted" } else { "" };
        let PagingRegisters { cr0, cr3, cr4, efer } = self.paging;
        let mut lines = vec![
            format!("{who}: {}, ring {}{halted}, interrupts {interrupts}", self.mode(), self.cpl),
            format!(
                "  rip {:016x}  rflags {:x}: {}",
                self.rip,
                self.rflags,
                words(self.rflags & !2, &RFLAGS)
            ),
        ];
        for registers in ROWS {
            let row = registers.iter().map(|(name, register)| {
                let value = self.general.get(*register as usize).copied().unwrap_or_default();
                format!("  {name} {value:016x}")
            });
            lines.push(row.collect());
        }
        lines.push(format!("  cr2 {:016x}  cr3 {cr3:016x}", self.cr2));
        for (name, value, names) in
            [("cr0", cr0, &CR0[..]), ("cr4", cr4, &CR4), ("efer", efer, &EFER)]
        {
            lines.push(format!("  {name} {value:x}: {}", words(value, names)));
        }
        let segments = self.segments.iter().zip(SEGMENTS);
        lines.extend(segments.map(|(segment, name)| format!("  {name:4} {}", Shown(segment))));
        for (table, name) in self.tables.iter().zip(["gdtr", "idtr"]) {
            lines.push(format!(
                "  {name} base {:016x}  limit {:x}",
                table.base.as_u64(),
                table.limit
            ));
        }
        let SystemCallMsrs { star, lstar, cstar, fmask, kernel_gs_base, sysenter } = self.calls;
        let [cs, esp, eip] = sysenter;
        lines.push(format!("  kernel_gs_base {kernel_gs_base:016x}  lstar {lstar:016x}"));
        lines.push(format!("  cstar {cstar:x}  star {star:x}  fmask {fmask:x}"));
        lines.push(format!("  sysenter_cs {cs:x}  sysenter_esp {esp:x}  sysenter_eip {eip:x}"));
        let DebugRegisters { addresses: [a, b, c, d], status, control } = self.debug;
        if self.debug.control & 0xff != 0 {
            lines.push(format!("  dr0 {a:x}  dr1 {b:x}  dr2 {c:x}  dr3 {d:x}"));
            lines.push(format!("  dr6 {status:x}  dr7 {control:x}"));
        }
        lines.push(format!("  code at rip: {}", self.code_text()));
        lines
    }

    fn code_text(&self) -> String {
        let (bytes, length) = &self.code;
        match bytes.get(..*length).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => hex::row(bytes),
            None => "cannot be read".into(),
        }
    }
}

/// The last exits, a few in a line: `recent` has them with commas between.
#[must_use]
pub fn last_exits(recent: &str) -> Lines {
    /// So many in a line.
    const IN_LINE: usize = 3;
    let all: Vec<&str> = recent.split(", ").collect();
    let first = |at| if at == 0 { "last exits: " } else { "            " };
    let line = |(at, part): (usize, &[&str])| format!("  {}{}", first(at), part.join(", "));
    all.chunks(IN_LINE).enumerate().map(line).collect()
}

/// Three in a row, as Linux prints them; RSP stands beside RIP.
const ROWS: [[(&str, Gpr); 4]; 4] = [
    [("rax", Gpr::Rax), ("rbx", Gpr::Rbx), ("rcx", Gpr::Rcx), ("rdx", Gpr::Rdx)],
    [("rsi", Gpr::Rsi), ("rdi", Gpr::Rdi), ("rbp", Gpr::Rbp), ("rsp", Gpr::Rsp)],
    [("r8 ", Gpr::R8), ("r9 ", Gpr::R9), ("r10", Gpr::R10), ("r11", Gpr::R11)],
    [("r12", Gpr::R12), ("r13", Gpr::R13), ("r14", Gpr::R14), ("r15", Gpr::R15)],
];

const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

/// RFLAGS (SDM "EFLAGS Register").
const RFLAGS: [(u32, &str); 17] = [
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (12, "IOPL1"),
    (13, "IOPL2"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (19, "VIF"),
    (21, "ID"),
];

/// CR0 (SDM "Control Registers").
const CR0: [(u32, &str); 11] = [
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];

/// CR4 (SDM "Control Registers").
const CR4: [(u32, &str); 22] = [
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
    (23, "CET"),
];

/// IA32_EFER (SDM "Extended Feature Enable Register"; APM "Extended Feature Enable Register (EFER)").
const EFER: [(u32, &str); 6] =
    [(0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"), (12, "SVME"), (14, "FFXSR")];

/// A segment register for a reader.
struct Shown<'a>(&'a Segment);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Segment { selector, base, limit, access } = self.0;
        if access.unusable() {
            return write!(f, "{selector:04x} holds nothing usable, base {base:016x}");
        }
        let system = access.0 & 1 << 4 == 0;
        let kind = match (system, access.0 & 8 != 0) {
            (true, _) => "system",
            (false, true) => "code",
            (false, false) => "data",
        };
        let width = match (access.long(), access.default_32()) {
            (true, _) => ", 64-bit",
            (false, true) => ", 32-bit",
            (false, false) if system => "",
            (false, false) => ", 16-bit",
        };
        let present = if access.0 & 1 << 7 == 0 { ", not present" } else { "" };
        write!(
            f,
            "{selector:04x} base {base:016x}  limit {limit:08x}: {kind}{width}, ring {}{present}",
            access.dpl()
        )
    }
}

#[cfg(test)]
mod tests {
    use arch::Gva;
    use arch::segment::AccessRights;
    use arch::vcpu::StartState;

    use super::*;

    fn snapshot() -> Snapshot {
        let StartState { segments, .. } = StartState::after_sipi(0x12);
        let mut code = [0; MAX_LENGTH];
        code[..2].copy_from_slice(&[0xeb, 0xfe]);
        let table = |base, limit| DescriptorTable { base: Gva::new(base), limit };
        Snapshot {
            general: core::array::from_fn(|index| 0x1000 + index as u64),
            rip: 0xffff_ffff_81a3_c1f0,
            rflags: 0x46,
            paging: PagingRegisters { cr0: 0x8005_0033, cr3: 0x2a3_c000, cr4: 0x20, efer: 0xd01 },
            cr2: 0x10,
            segments,
            tables: [table(0x7000, 0x7f), table(0xffff_fe00_0000_0000, 0xfff)],
            debug: DebugRegisters::default(),
            calls: SystemCallMsrs { lstar: 0xffff_ffff_81c0_0080, ..SystemCallMsrs::default() },
            cpl: 0,
            halted: false,
            code: (code, 2),
        }
    }

    #[test]
    fn every_register_has_its_name_and_its_flags_are_words() {
        let mut snapshot = snapshot();
        let flat = AccessRights::CODE64;
        let code = Segment { selector: 0x10, base: 0, limit: u32::MAX, access: flat };
        snapshot.segments[SegmentRegister::Cs as usize] = code;
        let lines = snapshot.lines("linux, CPU 0");
        assert_eq!(
            lines[..5],
            [
                "linux, CPU 0: 64-bit, ring 0, interrupts off",
                "  rip ffffffff81a3c1f0  rflags 46: ZF PF",
                "  rax 0000000000001000  rbx 0000000000001003  rcx 0000000000001001  rdx 0000000000001002",
                "  rsi 0000000000001006  rdi 0000000000001007  rbp 0000000000001005  rsp 0000000000001004",
                "  r8  0000000000001008  r9  0000000000001009  r10 000000000000100a  r11 000000000000100b",
            ]
        );
        let has =
            |line: &str| assert!(lines.iter().any(|other| other == line), "{line}\n{lines:#?}");
        has("  cr2 0000000000000010  cr3 0000000002a3c000");
        has("  cr0 80050033: PG AM WP NE ET MP PE");
        has("  cr4 20: PAE");
        has("  efer d01: NXE LMA LME SCE");
        has("  cs   0010 base 0000000000000000  limit ffffffff: code, 64-bit, ring 0");
        has("  tr   0000 base 0000000000000000  limit 0000ffff: system, ring 0");
        has("  idtr base fffffe0000000000  limit fff");
        has("  kernel_gs_base 0000000000000000  lstar ffffffff81c00080");
        has("  code at rip: eb fe");
        assert!(!lines.iter().any(|line| line.contains("dr7")), "{lines:#?}");
        // The log's lines are 80 columns behind `nexit: `, or few more.
        assert!(lines.iter().all(|line| line.len() <= 90), "{lines:#?}");
    }

    #[test]
    fn modes_are_told_apart_and_what_cannot_be_read_is_said() {
        let mut it = snapshot();
        it.code.1 = 0;
        it.debug.control = 0x401;
        it.debug.addresses[0] = 0xabc;
        it.halted = true;
        it.rflags = 0x202;
        let lines = it.lines("a");
        assert_eq!(lines[0], "a: 16-bit, ring 0, halted, interrupts on");
        assert!(lines.iter().any(|line| line.starts_with("  dr0 abc  dr1 0 ")), "{lines:#?}");
        assert_eq!(lines.last().map(String::as_str), Some("  code at rip: cannot be read"));
        it.paging.cr0 = 0x10;
        assert!(it.lines("a")[0].starts_with("a: real mode, "));
    }

    #[test]
    fn the_last_exits_are_few_in_a_line() {
        assert_eq!(
            last_exits("a 0x1 at 0x2, b 0x1 at 0x2, c 0x1 at 0x2, d 0x0 at 0x2"),
            [
                "  last exits: a 0x1 at 0x2, b 0x1 at 0x2, c 0x1 at 0x2",
                "              d 0x0 at 0x2",
            ]
        );
        assert_eq!(last_exits(""), ["  last exits: "]);
    }
}
