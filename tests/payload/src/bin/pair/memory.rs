//! Memory that both CPUs use: locked instructions, paging structures, descriptor tables and code that one changes and the
//! other uses (SDM "Multiple-Processor Management").

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use cpu::instructions::cpuid;
use x86_64::registers::control::Cr3;

use crate::ipi::{FIXED, arrivals};
use crate::other::{self, ASSERT};
use crate::trap::{self, CHANGED, Place, SHOOT_DOWN, pause, spin, wait_until};
use crate::{fact, local};

#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "it is reached by address")] [u64; 512]);

static TABLES: Place<[Page; 3]> = Place(UnsafeCell::new([const { Page([0; 512]) }; 3]));
static FRAMES: Place<[Page; 2]> = Place(UnsafeCell::new([const { Page([0; 512]) }; 2]));
static CODE: Place<Page> = Place(UnsafeCell::new(Page([0; 512])));
/// One page of its own, in entry 1 of the PML4.
pub(crate) const WINDOW: u64 = 1 << 39;

pub(crate) fn all() {
    locked();
    ordered();
    monitored();
    translations();
    gates();
    code();
}

const TURNS: u64 = 2000;
static COUNTERS: Place<[u64; 32]> = Place(UnsafeCell::new([0; 32]));
static GATE: AtomicU32 = AtomicU32::new(0);

/// How each counter is counted up. The last one lies across two lines of the cache.
extern "C" fn count_up(turns: u64) -> u64 {
    let at = COUNTERS.0.get() as u64;
    let line = at.next_multiple_of(64);
    GATE.fetch_add(1, SeqCst);
    while GATE.load(SeqCst) & 1 != 0 {
        spin();
    }
    for turn in 0..turns {
        // SAFETY: the counters alone are written.
        unsafe {
            asm!(
                "lock inc qword ptr [{0}]", "mov {1}, 1", "lock xadd [{0} + 8], {1}",
                "2:", "mov rax, [{0} + 16]", "lea {1}, [rax + 1]", "lock cmpxchg [{0} + 16], {1}", "jne 2b",
                // A lock of one bit around what is not atomic.
                "3:", "lock bts qword ptr [{0} + 24], 5", "jc 3b",
                "mov {1}, [{0} + 32]", "inc {1}", "mov [{0} + 32], {1}", "lock btr qword ptr [{0} + 24], 5",
                "4:", "mov {1:e}, 1", "xchg [{0} + 40], {1:e}", "test {1:e}, {1:e}", "jnz 4b",
                "inc dword ptr [{0} + 44]", "mov dword ptr [{0} + 40], 0",
                in(reg) line, out(reg) _, out("rax") _,
            );
        }
        if turn % 100 == 0 {
            // SAFETY: as above.
            unsafe { asm!("lock add dword ptr [{0}], 1", in(reg) line + 62) };
        }
    }
    turns
}

fn locked() {
    other::begin(count_up, TURNS);
    wait_until(|| GATE.load(SeqCst) == 1);
    count_up(TURNS);
    other::end();
    GATE.store(0, SeqCst);
    let line = (COUNTERS.0.get() as u64).next_multiple_of(64);
    // SAFETY: the other CPU has come to its end.
    let at = |offset: u64| unsafe { ((line + offset) as *const u32).read_unaligned() };
    fact!("memory: LOCK INC, LOCK XADD, LOCK CMPXCHG by both"; "{}, {}, {}", at(0), at(8), at(16));
    fact!("memory: under a lock by LOCK BTS, and by XCHG"; "{}, {}", at(32), at(44));
    fact!("memory: LOCK ADD across two lines"; "{}", at(62));
}

static WRITTEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static MISSED: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static STEPS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

/// Waits until both have come here as often.
fn meet(own: usize) {
    let steps = STEPS[own].fetch_add(1, SeqCst) + 1;
    while STEPS[1 - own].load(SeqCst) < steps {
        spin();
    }
}

/// Both write a word of their own, then read the other's: one of them sees it (SDM "Memory Ordering").
extern "C" fn write_and_read(cpu: u64) -> u64 {
    let (own, other) = (cpu as usize, 1 - cpu as usize);
    let mut both_missed = 0;
    for turn in 1..=500 {
        meet(own);
        WRITTEN[own].store(turn, SeqCst);
        let missed = WRITTEN[other].load(SeqCst) != turn;
        MISSED[own].store(missed.into(), SeqCst);
        meet(own);
        both_missed += u64::from(MISSED.iter().all(|missed| missed.load(SeqCst) != 0));
    }
    both_missed
}

fn ordered() {
    other::begin(write_and_read, 1);
    let own = write_and_read(0);
    fact!("memory: locked stores, and neither CPU sees the other's"; "{own}, {}", other::end());
}

static WATCHED: AtomicU64 = AtomicU64::new(0);

/// MONITOR and MWAIT until the word is not 0.
extern "C" fn watch(_: u64) -> u64 {
    other::ready();
    while WATCHED.load(SeqCst) == 0 {
        // SAFETY: CPUID shows both.
        unsafe { asm!("monitor", in("rax") WATCHED.as_ptr(), in("ecx") 0, in("edx") 0) };
        if WATCHED.load(SeqCst) == 0 {
            // SAFETY: as above.
            unsafe { asm!("mwait", in("eax") 0, in("ecx") 0) };
        }
    }
    WATCHED.load(SeqCst)
}

fn monitored() {
    if cpuid(1, 0).ecx >> 3 & 1 == 0 {
        return fact!("memory: MWAIT ends by the other CPU's write"; "not shown");
    }
    other::begin(watch, 0);
    other::wait_for_it();
    pause();
    // Bochs wakes no CPU by a locked write.
    WATCHED.store(7, Relaxed);
    let seen = other::end();
    fact!("memory: MWAIT ends by the other CPU's write"; "{}", seen == 7);
    if seen != 7 {
        other::stop();
        other::start();
        other::run(crate::start::enable, 0);
    }
}

/// Of the page at [`WINDOW`], on the CPU that calls.
pub(crate) fn drop_translation() {
    // SAFETY: it is only dropped.
    unsafe { asm!("invlpg [{}]", in(reg) WINDOW) };
}

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;

fn entry() -> *mut u64 {
    TABLES.0.get().cast::<u64>().wrapping_add(1024)
}

fn frame(index: u64) -> u64 {
    FRAMES.0.get() as u64 + 4096 * index
}

fn set_entry(value: u64) {
    // SAFETY: the entry of the window, which has nothing else in it.
    unsafe { entry().write_volatile(value) };
}

static VALUE: AtomicU64 = AtomicU64::new(0);

extern "C" fn peek(_: u64) {
    // SAFETY: a page fault ends the trial.
    VALUE.store(unsafe { (WINDOW as *const u64).read_volatile() }, SeqCst);
}

extern "C" fn poke(value: u64) {
    // SAFETY: as above.
    unsafe { (WINDOW as *mut u64).write_volatile(value) };
}

static TOLD: Place<trap::Seen> = Place(UnsafeCell::new(trap::Seen::NOTHING));

extern "C" fn peek_there(_: u64) -> u64 {
    VALUE.store(0, SeqCst);
    let seen = trap::run(1, peek, 0);
    // SAFETY: the other CPU waits for the end.
    unsafe { *TOLD.0.get() = seen };
    VALUE.load(SeqCst)
}

extern "C" fn poke_there(value: u64) -> u64 {
    let seen = trap::run(1, poke, value);
    // SAFETY: as above.
    unsafe { *TOLD.0.get() = seen };
    0
}

fn seen() -> trap::Seen {
    // SAFETY: the other CPU is done.
    unsafe { *TOLD.0.get() }
}

/// Changes the entry, and has both CPUs drop what they know of it.
fn change(value: u64) {
    set_entry(value);
    drop_translation();
    let _ = arrivals(1, || local::send(1, ASSERT | u32::from(SHOOT_DOWN)));
}

fn translations() {
    let tables = TABLES.0.get() as u64;
    for (at, value) in [(tables, tables + 4096), (tables + 4096, tables + 8192)] {
        // SAFETY: not in use yet.
        unsafe { (at as *mut u64).write_volatile(value | PRESENT | WRITE) };
    }
    for index in 0..2 {
        // SAFETY: as above.
        unsafe { (frame(index) as *mut u64).write_volatile(0x100 + index) };
    }
    set_entry(frame(0) | PRESENT);
    let root = Cr3::read().0.start_address().as_u64();
    // SAFETY: an entry that is absent, and such are not cached.
    unsafe { ((root + 8) as *mut u64).write_volatile(tables | PRESENT | WRITE) };
    let read = || (other::run(peek_there, 0), seen());
    let told = |name: &str, (value, seen): (u64, trap::Seen)| {
        fact!("memory: {name}"; "{value:#x}, {seen}");
    };
    // SAFETY: as for `set_entry`.
    let bits = || unsafe { entry().read_volatile() } & (ACCESSED | DIRTY);
    fact!("memory: the entry before CPU 1 has used it"; "{:#x}", bits());
    told("CPU 1 reads the first page", read());
    fact!("memory: the entry behind its read"; "{:#x}", bits());
    change(frame(1) | PRESENT);
    told("CPU 1 reads the second page after an IPI", read());
    other::run(poke_there, 0x200);
    fact!("memory: CPU 1 writes where it may only read"; "{}", seen());
    change(frame(1) | PRESENT | WRITE);
    other::run(poke_there, 0x200);
    fact!("memory: CPU 1 writes where it may"; "{}, {:#x}", seen(), bits());
    change(0);
    told("CPU 1 reads where nothing is after an IPI", read());
    // What was absent needs no IPI.
    set_entry(frame(0) | PRESENT);
    told("CPU 1 reads what was absent", read());
    change(0);
    let mut right = 0;
    for turn in 0..50 {
        change(frame(turn & 1) | PRESENT | WRITE);
        right += u64::from(other::run(peek_there, 0) == if turn & 1 == 0 { 0x100 } else { 0x200 });
    }
    fact!("memory: of 50 changes CPU 1 has seen"; "{right}");
}

/// Gates of CPU 1's table, written by CPU 0.
fn gates() {
    let to = |cpu: u32, vector: u8| local::send(cpu, ASSERT | u32::from(vector));
    let told = |name: &str, [own, there]: [trap::Came; 2]| {
        fact!("memory: {name}"; "{own}; {there}");
    };
    told("0x61 by its own gate", arrivals(1, || to(1, CHANGED)));
    trap::redirect(1, CHANGED, 0x91, true);
    told("0x61 by a gate that CPU 0 has changed", arrivals(1, || to(1, CHANGED)));
    trap::redirect(1, CHANGED, 0x92, true);
    other::run(interrupt, 0);
    let there = trap::take_came(1);
    fact!("memory: INT 0x61 by a gate that CPU 0 has changed"; "{there}");
    trap::redirect(1, 0x64, 0x64, false);
    other::run(interrupt_absent, 0);
    fact!("memory: INT 0x64 by a gate that CPU 0 has closed"; "{}", seen());
    trap::redirect(1, 0x64, 0x93, true);
    told("0x64 by a gate that CPU 0 has opened", arrivals(1, || to(1, 0x64)));
    other::run(interrupt_absent, 0);
    fact!("memory: INT 0x64 by a gate that CPU 0 has opened"; "{}, {}", seen(), trap::take_came(1));
    // One table for both. What CPU 1 writes down as 0x61 is then CPU 0's.
    other::run(load_table, 0);
    trap::redirect(0, 0x65, 0x94, true);
    told("one table for both: 0x65 to CPU 0", arrivals(1, || to(0, 0x65)));
    told("one table for both: 0x65 to CPU 1", arrivals(1, || to(1, 0x65)));
    other::run(change_first, 0x95);
    told("one table for both, changed by CPU 1: 0x65 to CPU 0", arrivals(1, || to(0, 0x65)));
    told("one table for both, changed by CPU 1: 0x65 to CPU 1", arrivals(1, || to(1, 0x65)));
    other::run(load_table, 1);
    told("a table for each again: 0x65 to CPU 1", arrivals(1, || to(1, 0x65)));
    told("a table for each again: 0x51 to CPU 1", arrivals(1, || local::send(1, FIXED)));
}

extern "C" fn interrupt(_: u64) -> u64 {
    // A serializing instruction.
    let _ = cpuid(0, 0);
    // SAFETY: its handler ends an interrupt that is not in service, and returns.
    unsafe { asm!("int 0x61") };
    0
}

extern "C" fn interrupt_absent(_: u64) -> u64 {
    extern "C" fn raise(_: u64) {
        // SAFETY: what it raises ends the trial.
        unsafe { asm!("int 0x64") };
    }
    let _ = cpuid(0, 0);
    let seen = trap::run(1, raise, 0);
    // SAFETY: the other CPU waits for the end.
    unsafe { *TOLD.0.get() = seen };
    0
}

extern "C" fn load_table(of: u64) -> u64 {
    trap::load(of as usize);
    0
}

extern "C" fn change_first(to: u64) -> u64 {
    trap::redirect(0, 0x65, to as u8, true);
    0
}

static GENERATION: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
const CHANGES: u32 = 100;

/// Executes what the other CPU has written, behind its flag and a serializing instruction (SDM "Handling Self- and
/// Cross-Modifying Code"). How often it was the newest.
extern "C" fn execute(_: u64) -> u64 {
    let mut right = 0;
    for turn in 1..=CHANGES {
        while GENERATION.load(SeqCst) != turn {
            spin();
        }
        let _ = cpuid(0, 0);
        let value: u32;
        // SAFETY: MOV EAX, and RET.
        unsafe { asm!("call {}", in(reg) CODE.0.get() as u64, out("eax") value) };
        right += u64::from(value == 0x5000 + turn);
        DONE.store(turn, SeqCst);
    }
    right
}

fn code() {
    other::begin(execute, 0);
    let code = CODE.0.get().cast::<u8>();
    for turn in 1..=CHANGES {
        let [a, b, c, d] = (0x5000 + turn).to_le_bytes();
        // SAFETY: the other CPU waits for the flag.
        unsafe { code.cast::<[u8; 6]>().write_volatile([0xb8, a, b, c, d, 0xc3]) };
        GENERATION.store(turn, SeqCst);
        wait_until(|| DONE.load(SeqCst) == turn);
    }
    fact!("memory: of 100 pieces of code written by the other CPU, executed as written"; "{}", other::end());
}
