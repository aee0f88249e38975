//! What ended a guest when a program of it did that, at CPL 3: table registers stored to a device, a jump into one, and an
//! instruction whose bytes another CPU changes. The guest has two CPUs.
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{Hpa, msr};
use cpu::instructions::write_msr;
use payload::trap::{CODE_SEGMENT, Frame, INTERRUPT_GATE, LIMIT, Segments, Table};
use payload::{power_off, say, verdict};
use x86_64::registers::control::Cr3;

/// By which a program ends.
const END: u8 = 0x80;
const UD: u64 = 6;
/// The first 2 MiB, and behind them those with the I/O APIC's registers, as a program sees them.
const MEMORY: u64 = 2 << 39;
const DEVICE: u64 = MEMORY + 0x20_0000;
const DEVICE_FRAME: u64 = 0xfec0_0000;
/// Pages below 1 MiB that nobody uses: the second CPU's code, what it changes, the program's code, and its stack.
const FLIPPER: u64 = 0x9000;
const CHANGED: u64 = 0xa000;
const CODE: u64 = 0xc000;
const STACK: u64 = 0xe000;
/// What counts the changes.
const FLIPS: u64 = CHANGED + 16;

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    device_registers();
    held_back_trap();
    changed_table_instruction();
    say!("done");
    power_off()
}

// RDI: what a program begins with, RCX, RSI, RAX and RIP; RSI: where this CPU's stack is kept meanwhile.
global_asm!(
    "program_begin:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rsi], rsp",
    "push {data}",
    "push [rdi + 32]",
    "push 2",
    "push {code}",
    "push [rdi + 24]",
    "mov rcx, [rdi]",
    "mov rsi, [rdi + 8]",
    "mov rax, [rdi + 16]",
    "iretq",
    "program_over:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    code = const Segments::USER_CODE,
    data = const Segments::USER_DATA,
);
payload::stubs!("program", caught);

unsafe extern "C" {
    fn program_begin(start: *const [u64; 5], stack: *const AtomicU64);
    fn program_over();
    static program_stubs: [u8; 16];
}

static KEPT: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(0);
/// A program's flags at its end.
static FLAGS: AtomicU64 = AtomicU64::new(0);
static TABLE: Table = Table::new();

#[repr(align(4096))]
struct Place<T>(UnsafeCell<T>);
// SAFETY: one CPU uses it.
unsafe impl<T> Sync for Place<T> {}

static POINTERS: Place<[u64; 512]> = Place(UnsafeCell::new([0; 512]));
static DIRECTORY: Place<[u64; 512]> = Place(UnsafeCell::new([0; 512]));
/// On which a program's exceptions are delivered.
static HANDLERS: Place<[u8; 8192]> = Place(UnsafeCell::new([0; 8192]));
static SEGMENTS: Segments = Segments::new();

extern "C" fn caught(frame: &mut Frame) {
    VECTOR.store(frame.vector, Ordering::Relaxed);
    FLAGS.store(frame.rflags, Ordering::Relaxed);
    frame.go_on(program_over as *const (), KEPT.load(Ordering::Relaxed));
}

/// Pages of the program's own, and what the CPU needs to come back from CPL 3.
fn prepare() {
    const USER_TABLE: u64 = 7;
    const USER_PAGE: u64 = 0x87;
    let (pointers, directory) = (POINTERS.0.get() as u64, DIRECTORY.0.get() as u64);
    let root = Cr3::read().0.start_address().as_u64();
    for (at, entry) in [
        (directory, USER_PAGE),
        (directory + 8, DEVICE_FRAME | USER_PAGE),
        (pointers, directory | USER_TABLE),
        (root + 8 * (MEMORY >> 39), pointers | USER_TABLE),
    ] {
        // SAFETY: the guest's own tables, mapped onto themselves; nobody uses the range otherwise.
        unsafe { (at as *mut u64).write_volatile(entry) };
    }
    for vector in 0..=255 {
        let entry = (&raw const program_stubs).wrapping_add(vector.into());
        let flags = if vector == END { INTERRUPT_GATE | 3 << 5 } else { INTERRUPT_GATE };
        TABLE.set_gate(vector, entry as u64, CODE_SEGMENT, flags);
    }
    SEGMENTS.load(&[(Segments::RSP0, HANDLERS.0.get() as u64 + 8192)]);
    TABLE.load(LIMIT);
}

/// Runs the program at `rip` with these registers; the vector by which it ended.
fn run(rip: u64, rcx: u64, rsi: u64, rax: u64) -> u64 {
    prepare();
    let start = [rcx, rsi, rax, rip, MEMORY + STACK];
    // SAFETY: whatever the program does ends in a handler that comes back here.
    unsafe { program_begin(&raw const start, &raw const KEPT) };
    VECTOR.load(Ordering::Relaxed)
}

/// Puts code into low memory; where the program sees it.
fn put(at: u64, code: &[u8]) -> u64 {
    let place = cpu::physical::pointer::<u8>(Hpa::new(at));
    for (index, byte) in code.iter().enumerate() {
        // SAFETY: low memory that nobody uses once the loader is done.
        unsafe { place.wrapping_add(index).write_volatile(*byte) };
    }
    MEMORY + at
}

/// Table registers stored to a device's registers, and code there.
fn device_registers() {
    // SIDT, SGDT, SLDT and STR to [RCX], and INT.
    let stores = [[0x0f, 1, 0x09], [0x0f, 1, 0x01], [0x0f, 0, 0x01], [0x0f, 0, 0x09]];
    let ends = stores.map(|[first, second, third]| {
        run(put(CODE, &[first, second, third, 0xcd, END]), DEVICE + 0x20, 0, 0)
    });
    let stored = ends.iter().all(|vector| *vector == END.into());
    verdict(
        "a device takes what a program stores by SIDT and its kin",
        stored,
        format_args!("{ends:?}"),
    );
    // It reads as zeros, ADD [RAX], AL, up to its last byte; behind it nothing is.
    let vector = run(DEVICE + 0xfe0, 0, 0, MEMORY + CODE + 0x100);
    verdict("a program's code in a device runs to its end", vector == UD, format_args!("{vector}"));
}

/// SS from a device's register holds the hypervisor's trap back: INT comes before it.
fn held_back_trap() {
    const TRAP: u64 = 1 << 8;
    // SAFETY: the I/O APIC's index, which `run` has mapped, and which holds the selector then.
    unsafe { (DEVICE as *mut u32).write_volatile(Segments::USER_DATA as u32) };
    // MOV SS, [RCX]; INT.
    let vector = run(put(CODE, &[0x8e, 0x11, 0xcd, END]), DEVICE, 0, 0);
    let flags = FLAGS.load(Ordering::Relaxed);
    verdict(
        "a program's SS from a device brings no flags of the hypervisor's into the kernel",
        vector == UD && flags & TRAP == 0,
        format_args!("{vector}, {flags:#x}"),
    );
}

/// SIDT, turned into a prefetch and back by the other CPU between exit and decoding.
fn changed_table_instruction() {
    const INIT: u64 = 1 << 32 | 5 << 8 | 1 << 14;
    const STARTUP: u64 = 1 << 32 | 6 << 8 | FLIPPER >> 12;
    // SIDT [RCX]; DEC ESI; JNZ to it; INT. The second byte is the one that changes.
    let rip = put(CHANGED - 1, &[0x0f, 0x01, 0x09, 0xff, 0xce, 0x75, 0xf9, 0xcd, END]);
    // Real mode: CLI, DS = 0, then the byte turns from SIDT's into PREFETCHW's and back for ever, and a dword counts. The
    // jump between is for Bochs, whose CPUs take turns where one of them jumps.
    let [low, high, ..] = FLIPS.to_le_bytes();
    put(
        FLIPPER,
        &[
            0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0xa0, 0x01, 0xeb, 0x00, 0xc6, 0x06,
            0x00, 0xa0, 0x0d, 0x66, 0xff, 0x06, low, high, 0xeb, 0xed,
        ],
    );
    for command in [INIT, STARTUP] {
        // SAFETY: the guest's own second CPU, from its local APIC in x2APIC mode.
        unsafe { write_msr(msr::IA32_X2APIC_ICR, command) };
    }
    while flips() == 0 {
        core::hint::spin_loop();
    }
    let before = flips();
    let vector = run(rip, MEMORY + CHANGED + 64, 10_000, 0);
    let lived = vector == END.into() && flips() != before;
    verdict("a program's SIDT may change at any moment", lived, format_args!("{vector}"));
    // SAFETY: as above.
    unsafe { write_msr(msr::IA32_X2APIC_ICR, INIT) };
}

fn flips() -> u32 {
    // SAFETY: low memory that only the other CPU writes.
    unsafe { cpu::physical::pointer::<u32>(Hpa::new(FLIPS)).read_volatile() }
}
