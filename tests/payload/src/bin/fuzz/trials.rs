//! What a trial does, by chance: an instruction, an MSR, a port, an interrupt, control registers, gates, configuration
//! space, the console's registers.

use arch::machine::Width;
use arch::msr::{IA32_X2APIC_ICR, IA32_X2APIC_SELF_IPI};
use cpu::instructions::{cpuid, port_read, port_write, write_msr};
use payload::say;
use payload::trap::{INTERRUPT_GATE, LIMIT, Segments};

use crate::code::{self, Code};
use crate::processor::{self, Start, TIMER};
use crate::random::Random;
use crate::state::{self, State};
use crate::window;

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];
const NOP: [u8; 1] = [0x90];
const INTERRUPTS: u64 = 1 << 9;

/// Two CPUs write to the console.
static ONE_LINE: spin::Mutex<()> = spin::Mutex::new(());

/// A CPU in its trial.
pub(crate) struct Tester<'a> {
    pub(crate) cpu: usize,
    pub(crate) random: Random,
    pub(crate) state: &'a State,
    /// Its number, if it is to be shown.
    pub(crate) shown: Option<u64>,
}

/// Runs one. The vector of the exception or interrupt that ended it.
pub(crate) fn run(mut tester: Tester<'_>) -> u64 {
    let vector = match tester.random.below(32) {
        0..=15 => tester.instruction(),
        16..=19 => tester.any_msr(),
        20..=22 => tester.port(),
        23..=24 => tester.interrupt(),
        25..=26 => tester.control_register(),
        27..=28 => tester.gates(),
        29 => tester.configuration(),
        30 => tester.console(),
        _ => tester.leaf(),
    };
    tester.state.back();
    vector
}

impl Tester<'_> {
    /// Where a trial begins if nothing is said.
    fn start(&mut self, code: Code) -> Start {
        const DIRECTION_TO_ID: u64 = 0x24_0cd5;
        let random = &mut self.random;
        let mut registers = [0; 15];
        for register in &mut registers {
            *register = if random.once_in(4) { random.value() } else { window::pointer(random) };
        }
        if !random.once_in(4) {
            registers[1] = random.below(40);
        }
        if random.once_in(2) {
            registers[2] = u64::from(port(random));
        }
        let step = if random.once_in(16) { 1 << 8 } else { 0 };
        // The first CPU, which ends the guest, can always be called.
        let interrupts = if self.cpu == 0 || !random.once_in(4) { INTERRUPTS } else { 0 };
        let flags = 2 | random.next() & DIRECTION_TO_ID | step | interrupts;
        let user = random.once_in(3);
        let rsp = window::pointer(random);
        // Code in a device, or nowhere: near the end of a page, as each instruction there takes some exits.
        let elsewhere = random.once_in(48).then(|| window::pointer(random) | 0xfd0);
        let rip = window::code(self.cpu, code.bytes());
        let (cs, ss) = if user { (Segments::USER_CODE, Segments::USER_DATA) } else { (8, 16) };
        Start { registers, rip: elsewhere.unwrap_or(rip), cs, flags, rsp, ss }
    }

    /// The same at CPL 0, in the code's own page.
    fn privileged(&mut self, code: &[u8], [rax, rcx, rdx]: [u64; 3]) -> Start {
        let code = Code::of(code);
        let mut start = self.start(code);
        start.rip = window::code(self.cpu, code.bytes());
        (start.cs, start.ss) = (8, 16);
        start.registers[..3].copy_from_slice(&[rax, rcx, rdx]);
        start
    }

    fn run(&self, start: &Start) -> u64 {
        if let Some(number) = self.shown {
            let _line = ONE_LINE.lock();
            let [code, behind] = window::now(self.cpu);
            say!(
                "CPU {} trial {number}: {:032x} {start:x?}",
                self.cpu,
                u128::from(code) | u128::from(behind) << 64
            );
        }
        processor::run(self.cpu, start)
    }

    fn instruction(&mut self) -> u64 {
        let code = code::instruction(&mut self.random);
        let start = self.start(code);
        self.run(&start)
    }

    fn any_msr(&mut self) -> u64 {
        let (first, last) = self.random.one_of(MSRS, (0, 0));
        let msr = match self.random.below(12) {
            0 => self.random.next() as u32,
            _ => first + self.random.below(u64::from(last - first) + 1) as u32,
        };
        if self.random.once_in(3) {
            let start = self.privileged(&RDMSR, [0, msr.into(), 0]);
            return self.run(&start);
        }
        let value = self.random.value();
        self.write(msr, value)
    }

    fn write(&mut self, msr: u32, value: u64) -> u64 {
        let value = if msr == IA32_X2APIC_ICR { self.command() } else { value };
        let start = self.privileged(&WRMSR, [value & 0xffff_ffff, msr.into(), value >> 32]);
        let vector = self.run(&start);
        self.state.back();
        self.state.back_from_msr(msr);
        vector
    }

    fn port(&mut self) -> u64 {
        let port = u64::from(port(&mut self.random));
        let code = [0x66, self.random.one_of(&[0xec, 0xed, 0xee, 0xef], 0xec)];
        let wide = usize::from(self.random.once_in(2));
        let value = self.random.value();
        let start = self.privileged(&code[wide..], [value, 0, port]);
        self.run(&start)
    }

    /// An ICR's value. INIT and start-up IPIs go to CPUs that are not the guest's.
    fn command(&mut self) -> u64 {
        const LOGICAL: u64 = 1 << 11;
        let random = &mut self.random;
        let mode = random.below(8);
        let destination = match random.below(4) {
            0 | 1 => random.below(3),
            2 => random.below(64),
            _ => random.value() & 0xffff_ffff,
        };
        let (vector, further) = (random.next() & 0xff, random.next() & 0xc_d000);
        let foreign = mode == 5 || mode == 6;
        let logical = if random.once_in(3) { LOGICAL } else { 0 };
        if foreign {
            return (destination & 0xff | 2) << 32 | further & 0xd000 | mode << 8 | vector;
        }
        destination << 32 | further | logical | mode << 8 | vector
    }

    fn interrupt(&mut self) -> u64 {
        let value = self.random.value();
        let msr = if self.random.once_in(3) { IA32_X2APIC_SELF_IPI } else { IA32_X2APIC_ICR };
        let vector = self.write(msr, value);
        state::end_all();
        vector
    }

    /// Bits that a CPU lets go; on Intel's any, which must be refused where they may not.
    fn control_register(&mut self) -> u64 {
        const CR0: [u32; 7] = [1, 2, 3, 5, 16, 18, 30];
        const CR4: [u32; 11] = [0, 1, 2, 3, 7, 8, 9, 10, 16, 20, 21];
        let any = cpuid(0, 0).ebx.to_le_bytes() == *b"Genu";
        let random = &mut self.random;
        let of = |random: &mut Random, bits: &[u32]| {
            1 << if any { random.below(64) as u32 } else { random.one_of(bits, 3) }
        };
        let at = window::pointer(random);
        let (code, value): (&[u8], u64) = match random.below(6) {
            0 => (&[0x0f, 0x22, 0xc0], self.state.cr0() ^ of(random, &CR0)),
            1 => (&[0x0f, 0x22, 0xe0], self.state.cr4() ^ of(random, &CR4)),
            2 => (&[0x44, 0x0f, 0x22, 0xc0], random.value() & 15),
            3 => (&[0x0f, 0x01, 0xd1], random.value()),
            4 => (&[0x0f, 0x23, 0xc0], at),
            _ => (&[0x0f, 0x23, 0xf8], random.value() & 0xffff_ffff),
        };
        let start = self.privileged(code, [value, 0, value >> 32]);
        self.run(&start)
    }

    /// An interrupt for itself through a gate that is not there, of another type, beyond the table, or in another one.
    fn gates(&mut self) -> u64 {
        let vector = 32 + self.random.below(223) as u8;
        let flags = self.random.one_of(&[0, 0x0e, 0x8e, 0xee, 0x8f, 0x85, 0x8c, 0x9e], 0x8e);
        let [first, second] = processor::tables(self.cpu);
        let used = if self.random.once_in(2) { first } else { second };
        let limit =
            if self.random.once_in(3) { 0x1ff + self.random.below(0xe00) as u16 } else { LIMIT };
        processor::set_gate(self.cpu, used, vector, flags);
        used.load(limit);
        // SAFETY: to itself, through a table whose exceptions are whole.
        unsafe { write_msr(IA32_X2APIC_SELF_IPI, vector.into()) };
        let mut start = self.privileged(&NOP, [0; 3]);
        start.flags |= INTERRUPTS;
        let ended = self.run(&start);
        processor::set_gate(self.cpu, used, vector, INTERRUPT_GATE);
        state::back_to_gates(self.cpu);
        if vector == TIMER {
            processor::start_timer();
        }
        ended
    }

    fn configuration(&mut self) -> u64 {
        let random = &mut self.random;
        let function = if random.once_in(2) { random.below(8) } else { random.below(0x1_0000) };
        let address = 1 << 31 | function << 8 | random.next() & 0xfc;
        let data = 0xcfc + random.below(4) as u16;
        let width = random.one_of(&[Width::Byte, Width::Word, Width::Dword], Width::Dword);
        let value = random.value() as u32;
        // SAFETY: the guest's own ports.
        unsafe { port_write(0xcf8, Width::Dword, address as u32) };
        // SAFETY: as above.
        unsafe { port_write(data, width, value) };
        // SAFETY: as above.
        let _ = unsafe { port_read(data, width) };
        0
    }

    /// The console's registers but the one that sends.
    fn console(&mut self) -> u64 {
        let (register, value) = (0x3f9 + self.random.below(7) as u16, self.random.byte());
        console_register(register, value);
        console_back();
        0
    }

    fn leaf(&mut self) -> u64 {
        let base = self.random.one_of(&[0, 0x4000_0000, 0x4000_0100, 0x8000_0000], 0);
        let leaf = self.random.below(0x24) | base;
        let subleaf = self.random.below(32);
        let start = self.privileged(&[0x0f, 0xa2], [leaf, subleaf, 0]);
        self.run(&start)
    }
}

fn console_register(port: u16, value: u8) {
    // SAFETY: the guest's own UART.
    unsafe { port_write(port, Width::Byte, value.into()) };
    // SAFETY: as above.
    let _ = unsafe { port_read(port, Width::Byte) };
}

/// Lets the console send again. Another CPU that was stopped in its trial may have left it as it was then: what is sent
/// goes nowhere in loopback, and to the divisor while LCR.DLAB is set.
pub(crate) fn console_back() {
    for (port, value) in [(0x3fb, 3), (0x3f9, 0), (0x3fa, 7), (0x3fc, 3)] {
        console_register(port, value);
    }
}

/// Ranges of MSRs: what CPUs and hypervisors have.
const MSRS: &[(u32, u32)] = &[
    (0, 0x3b),
    (0x48, 0x8b),
    (0x9b, 0x9e),
    (0xc1, 0xc8),
    (0xce, 0xfe),
    (0x10a, 0x122),
    (0x140, 0x150),
    (0x174, 0x17a),
    (0x186, 0x1a2),
    (0x1c8, 0x1f8),
    (0x200, 0x277),
    (0x2ff, 0x2ff),
    (0x345, 0x345),
    (0x38d, 0x390),
    (0x400, 0x410),
    (0x480, 0x493),
    (0x560, 0x58b),
    (0x600, 0x619),
    (0x6a0, 0x6e1),
    (0x770, 0x777),
    (0x800, 0x83f),
    (0x800, 0x83f),
    (0x808, 0x80f),
    (0x830, 0x83f),
    (0x985, 0x985),
    (0xc80, 0xd93),
    (0xda0, 0xda0),
    (0x4000_0000, 0x4000_0010),
    (0x4b56_4d00, 0x4b56_4d08),
    (0xc000_0080, 0xc000_0084),
    (0xc000_0100, 0xc000_0104),
    (0xc001_0000, 0xc001_0020),
    (0xc001_0050, 0xc001_0064),
    (0xc001_0110, 0xc001_011f),
    (0xc001_0131, 0xc001_0141),
    (0x1b, 0x1b),
];

/// A port: not those whose bytes end or reboot the guest, nor the console.
fn port(random: &mut Random) -> u16 {
    const LIKELY: &[u16] = &[
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x70, 0x71, 0x80, 0x4d0, 0x608, 0xcfc, 0xcfe,
        0x1f0, 0x1ce, 0x2f8, 0x3d4, 0x402, 0x510, 0x511, 0xb000, 0xb004, 0xb2, 0x5658, 0x8900,
        0xfffc,
    ];
    let port = if random.once_in(2) { random.one_of(LIKELY, 0x80) } else { random.next() as u16 };
    match port {
        0x5d..=0x67 | 0x8f..=0x92 | 0x3f5..=0x3ff | 0x5fd..=0x607 | 0xcf5..=0xcfb => 0x80,
        port => port,
    }
}
