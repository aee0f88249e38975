//! A guest that says what its loader gave it and then ends in the way that its command line names.
#![no_std]
#![no_main]

use core::arch::asm;
use core::fmt::Write as _;
use core::sync::atomic::AtomicU8;

use arch::Hpa;
use arch::machine::Width;
use arch::{ApicId, Vector, msr};
use boot::MemoryKind;
use cpu::instructions::{
    debug_registers, halt_forever, port_read, port_write, read_msr, set_debug_registers, tsc,
    write_msr,
};
use cpu::local_apic::LocalApic;
use cpu::start::StartPage;
use payload::{Console, loaded, power_off, say, verdict};
use x86_64::VirtAddr;
use x86_64::registers::control::Cr3;
use x86_64::structures::DescriptorTablePointer;

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let Some(info) = (unsafe { loaded(magic, info) }) else { power_off() };
    let usable = info.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    let usable: u64 = usable.map(|region| region.range.length).sum();
    say!("command line: {}", info.command_line);
    say!("usable memory: {} KiB", usable >> 10);
    for module in &info.modules {
        // SAFETY: the loader put the module there, and nobody writes to it.
        let bytes =
            unsafe { cpu::physical::bytes(module.range.start, module.range.length as usize) };
        say!("module: {} bytes, checksum {:#x}", bytes.len(), checksum(bytes));
    }
    say!("TSC: {}", tsc());
    leave_a_mark();
    nothing_is_pending();
    let way = info.command_line.split_whitespace().next().unwrap_or("poweroff");
    say!("ends by {way}");
    end(way)
}

/// Writes into the debug registers, and into memory that no loader touches, what an earlier generation would have left there.
fn leave_a_mark() {
    const MARK: u64 = 0x6e65_7869_745f_6d72;
    // SAFETY: CPL 0.
    let (found, status) = unsafe { debug_registers() };
    verdict("its debug registers are fresh", found == [0; 4], format_args!("{found:x?}"));
    // SAFETY: as above; no breakpoint is on.
    unsafe { set_debug_registers([MARK; 4], status) };
    let at = cpu::physical::pointer::<u64>(Hpa::new(0x280_0000));
    // SAFETY: RAM of the guest (which has 64 MiB) below what the loader puts at its end.
    let before = unsafe { at.read_volatile() };
    verdict("its memory is fresh", before == 0, format_args!("{before:#x}"));
    // SAFETY: as above.
    unsafe { at.write_volatile(MARK) };
}

/// What an earlier generation has sent itself is gone.
fn nothing_is_pending() {
    for word in 0..8 {
        // SAFETY: the guest starts in x2APIC mode; the eight IRRs exist.
        let requests = unsafe { read_msr(msr::IA32_X2APIC_IRR0 + word) };
        if word == 0 || requests != 0 {
            let first = 32 * word;
            verdict(
                "no interrupt is pending",
                requests == 0,
                format_args!("{requests:#x} from {first}"),
            );
        }
    }
}

/// Sends itself an interrupt of each vector that an exception has, too, and takes none; then reboots.
fn leave_low_vectors() {
    let apic = LocalApic::current();
    (16..32).for_each(|vector| apic.self_ipi(Vector(vector)));
    // SAFETY: as in `nothing_is_pending`.
    let requests = unsafe { read_msr(msr::IA32_X2APIC_IRR0) };
    verdict("low vectors are pending", requests == 0xffff_0000, format_args!("{requests:#x}"));
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn end(way: &str) -> ! {
    let out = |port: u16, value: u32| {
        // SAFETY: the guest's own ports.
        unsafe { port_write(port, Width::Byte, value) };
    };
    match way {
        "reset-register" => out(0xcf9, 6),
        "low-vectors" => {
            leave_low_vectors();
            out(0xcf9, 6);
        }
        "second-cpu" => start_second_cpu(),
        "keyboard-controller" => out(0x64, 0xfe),
        "system-control-port" => out(0x92, 1),
        "triple-fault" => triple_fault(),
        // SAFETY: nothing is mapped there, and nothing comes after it.
        "nowhere" => unsafe { asm!("jmp {}", in(reg) 0xd000_0000_u64, options(noreturn)) },
        "halt" => halt_forever(),
        "spin" => loop {
            core::hint::spin_loop();
        },
        "waits" => wait_for_nothing(),
        // Only an NMI gets in there.
        // SAFETY: nothing comes after it.
        "hang" => unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) },
        "lie" => lie(),
        _ => power_off(),
    }
    say!("FAILED: still here");
    halt_forever()
}

/// Starts it. What a start-up IPI keeps is to be this generation's: `second` says so and reboots.
fn start_second_cpu() {
    // What the CPU's start waits for is in ticks of this.
    const TSC_KHZ: u64 = 10_000;
    const PAGE: Hpa = Hpa::new(0x1_0000);
    const STACK: u64 = 0x240_0000;
    // SAFETY: low memory that nothing else uses.
    let mut page = unsafe { StartPage::new(PAGE) };
    page.prepare(Hpa::new(Cr3::read().0.start_address().as_u64()), STACK, second, 0);
    // SAFETY: x2APIC mode, and the guest's own CPU; low memory is executable.
    unsafe { page.start(ApicId(1), TSC_KHZ) };
    loop {
        core::hint::spin_loop();
    }
}

/// Looks at the registers that INIT keeps, and leaves its own there.
extern "C" fn second(_: u64) -> ! {
    const MARK: u64 = 0x6e65_7869_745f;
    const KEPT: [u32; 6] = [
        msr::IA32_LSTAR,
        msr::IA32_CSTAR,
        msr::IA32_STAR,
        msr::IA32_KERNEL_GS_BASE,
        msr::IA32_SYSENTER_ESP,
        msr::IA32_SYSENTER_EIP,
    ];
    // SAFETY: every 64-bit CPU has them.
    let found = KEPT.map(|msr| unsafe { read_msr(msr) });
    verdict("its second CPU is fresh", found == [0; 6], format_args!("{found:x?}"));
    for msr in KEPT {
        // SAFETY: an address, and nothing uses it.
        unsafe { write_msr(msr, MARK) };
    }
    // SAFETY: the reset control register.
    unsafe { port_write(0xcf9, Width::Byte, 6) };
    halt_forever()
}

/// Executes zeros for some time, then waits for a tick that cannot come, then powers off.
fn wait_for_nothing() -> ! {
    /// ADD of AL to where RAX points, again and again, and RET.
    static ZEROS: Zeros = Zeros([0; 0x8000], 0xc3);
    static PLACE: AtomicU8 = AtomicU8::new(0);
    let second = ticks_of_a_second();
    let begin = tsc();
    while tsc() - begin < 3 * second {
        // SAFETY: the byte that RAX points to is nobody's, and RET comes back.
        unsafe { asm!("call {}", in(reg) &raw const ZEROS, inout("rax") PLACE.as_ptr() => _) };
    }
    say!("zeros are over");
    let begin = tsc();
    // SAFETY: nothing is set that would interrupt.
    unsafe { asm!("sti") };
    while tsc() - begin < 5 * second {
        core::hint::spin_loop();
    }
    power_off()
}

#[repr(C, align(4096))]
struct Zeros([u8; 0x8000], u8);

/// What the TSC counts in a second, by channel 2 of the PIT: 50 ms.
fn ticks_of_a_second() -> u64 {
    let out = |port: u16, value: u32| {
        // SAFETY: the guest's own PIT.
        unsafe { port_write(port, Width::Byte, value) };
    };
    [(0x61, 1), (0x43, 0xb0), (0x42, 0x0b), (0x42, 0xe9)]
        .into_iter()
        .for_each(|(port, value)| out(port, value));
    let begin = tsc();
    // SAFETY: as above.
    while unsafe { port_read(0x61, Width::Byte) } & 0x20 == 0 {}
    20 * (tsc() - begin)
}

/// Says what only the hypervisor may say, then powers off.
fn lie() {
    for mark in ["", "\u{1e}"] {
        let _ = write!(Console, "{mark}nexit: error: a lie\r\n{mark}nexit: halted\r\n");
        let report = r#"{"guest":{"name":"ends","outcome":"crash","vcpus":[]}}"#;
        let _ = write!(Console, "{mark}nexit-report: {report}\r\n");
    }
    power_off()
}

fn triple_fault() {
    let nothing = DescriptorTablePointer { limit: 0, base: VirtAddr::zero() };
    // SAFETY: nothing that comes after needs an interrupt descriptor table.
    unsafe { x86_64::instructions::tables::lidt(&nothing) };
    // SAFETY: without a handler the exception shuts the CPU down.
    unsafe { asm!("ud2") };
}
