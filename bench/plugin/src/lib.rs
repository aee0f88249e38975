//! A plugin for QEMU's TCG that counts every executed instruction, guest's and hypervisor's apart.
//!
//! `-plugin libnexit_count.so,out=FILE[,profile=LOW-HIGH][,vmcb=BASE][,vectors=FILE]`
//!
//! - **Exact**: each instruction adds one to its CPU's counter, inline in the translated code. One
//!   that faults is counted at each attempt.
//! - **Levels**: VMRUN begins the guest, the instruction after it the hypervisor. That instruction is
//!   known by its place in the machine's memory, as a guest may use the same virtual address.
//! - **Windows**: a program of the guest opens and closes them with NOPs ([`code::kind`]); each window
//!   is one line of FILE ([`report`]), and a last line covers all of the run.
//! - **Profile**: with addresses (hexadecimal), the hypervisor's instructions there by exit code and
//!   address, and the guest's within windows. Much slower.
//! - **Interrupts** by vector, with the addresses to which the gates of the guest's kernel lead: a file of
//!   lines `ADDRESS VECTOR`, both hexadecimal.
//!
//! Works for every AMD-V hypervisor; the exit code is known only where BASE is the hexadecimal virtual
//! address at which it maps physical address 0 (default: 0, as Nexit does).

mod abi;
mod account;
mod code;
mod report;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use abi::{Block, Callback, Counter, Id, Instruction, RegisterDescriptor};
use account::{Account, Level, UNKNOWN};
use code::Kind;

/// QEMU reads this before it calls any function.
// SAFETY: no other code defines this name.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU looks for this name")]
pub static qemu_plugin_version: c_int = abi::VERSION;

/// Offset of EXITCODE in the VMCB (AMD APM volume 2, "VMCB Layout").
const EXITCODE: u64 = 0x70;
/// The longest instruction, in bytes.
const LONGEST: usize = 15;

/// The settings, written once.
struct Setup {
    executed: Counter,
    profile: Range<u64>,
    /// The address at which the hypervisor maps physical address 0.
    physical: u64,
    /// Vectors by the address of their handlers' first instruction.
    vectors: HashMap<u64, u8>,
}

// SAFETY: the counter is a handle that QEMU's functions take on any thread.
unsafe impl Send for Setup {}
// SAFETY: as above.
unsafe impl Sync for Setup {}

static SETUP: OnceLock<Setup> = OnceLock::new();
/// By virtual CPU.
static ACCOUNTS: Mutex<Vec<Account>> = Mutex::new(Vec::new());
/// RAX of each virtual CPU, as QEMU's handle.
static RAX: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// The VMCB that each virtual CPU entered last.
static VMCB: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// Where QEMU keeps the instructions after VMRUN.
static AFTER_VMRUN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static OUTPUT: Mutex<Option<Output>> = Mutex::new(None);
/// Windows that are open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

struct Output {
    file: File,
    /// Windows so far.
    number: usize,
    /// The open ones, and how all CPUs stood then.
    open: Vec<(u8, Vec<Account>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot of a CPU; created if it does not exist yet.
fn slot<T: Clone + Default>(list: &mut Vec<T>, cpu: c_uint) -> &mut T {
    let index = cpu as usize;
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}

/// Called by QEMU when it loads the plugin. Not zero: refused.
///
/// # Safety
/// Called by QEMU only: `arguments` are `count` strings.
// SAFETY: no other code defines this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let words = (0..count as usize).map(|index| {
        // SAFETY: `count` pointers lie there.
        let at = unsafe { arguments.add(index) };
        // SAFETY: as above.
        let text = unsafe { at.read() };
        // SAFETY: each is a string that ends with NUL.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    });
    match install(id, words) {
        Ok(()) => 0,
        Err(sentence) => {
            eprintln!("nexit_count: {sentence}");
            1
        }
    }
}

fn install(id: Id, words: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut out, mut profile, mut physical, mut vectors) = (None, 0..0, 0, HashMap::new());
    for word in words {
        match word.split_once('=') {
            Some(("out", path)) => out = Some(path.to_owned()),
            Some(("profile", range)) => {
                profile = parse_range(range).ok_or("profile= takes two hexadecimal addresses")?;
            }
            Some(("vmcb", base)) => {
                physical = hexadecimal(base).ok_or("vmcb= takes a hexadecimal address")?;
            }
            Some(("vectors", path)) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|error| format!("cannot read {path}: {error}"))?;
                vectors = text.lines().filter_map(handler).collect();
            }
            _ => {
                let known = "out=FILE, profile=LOW-HIGH, vmcb=BASE, vectors=FILE";
                return Err(format!("{word}: use {known}"));
            }
        }
    }
    let path = out.ok_or("out=FILE is missing")?;
    let file = File::create(&path).map_err(|error| format!("cannot write {path}: {error}"))?;
    *lock(&OUTPUT) = Some(Output { file, number: 0, open: Vec::new() });
    // SAFETY: called while the plugin is being installed, as QEMU asks for.
    let score = unsafe { abi::qemu_plugin_scoreboard_new(size_of::<u64>()) };
    let _ = SETUP.set(Setup { executed: Counter { score, offset: 0 }, profile, physical, vectors });
    // SAFETY: the function lives as long as the plugin, which is never unloaded.
    unsafe { abi::qemu_plugin_register_vcpu_init_cb(id, on_cpu) };
    // SAFETY: as above.
    unsafe { abi::qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation) };
    // SAFETY: as above.
    unsafe { abi::qemu_plugin_register_atexit_cb(id, on_exit, ptr::null_mut()) };
    Ok(())
}

/// Address and vector.
fn handler(line: &str) -> Option<(u64, u8)> {
    let (address, vector) = line.split_once(' ')?;
    Some((hexadecimal(address)?, hexadecimal(vector)?.try_into().ok()?))
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (low, high) = text.split_once('-')?;
    Some(hexadecimal(low)?..hexadecimal(high)?)
}

fn hexadecimal(word: &str) -> Option<u64> {
    u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
}

/// A CPU begins: its RAX is looked up.
extern "C" fn on_cpu(_id: Id, cpu: c_uint) {
    slot(&mut lock(&ACCOUNTS), cpu);
    // SAFETY: called in the context of a CPU.
    let registers = unsafe { abi::qemu_plugin_get_registers() };
    // SAFETY: QEMU gives an array of descriptors, or nothing.
    let Some(registers) = (unsafe { registers.as_ref() }) else { return };
    let first = registers.data.cast::<RegisterDescriptor>();
    for index in 0..registers.length as usize {
        // SAFETY: the array holds `count` elements.
        let at = unsafe { first.add(index) };
        // SAFETY: as above.
        let register = unsafe { &*at };
        // SAFETY: QEMU's own string.
        if unsafe { CStr::from_ptr(register.name) } == c"rax" {
            *slot(&mut lock(&RAX), cpu) = register.handle as usize;
        }
    }
}

/// QEMU has translated a block: registers the callbacks of each instruction.
extern "C" fn on_translation(_id: Id, block: *mut Block) {
    let Some(setup) = SETUP.get() else { return };
    // SAFETY: QEMU's block, in its translation.
    let count = unsafe { abi::qemu_plugin_tb_n_insns(block) };
    for index in 0..count {
        // SAFETY: as above, and `index` is below the number of instructions.
        let instruction = unsafe { abi::qemu_plugin_tb_get_insn(block, index) };
        instrument(setup, instruction);
    }
}

fn instrument(setup: &Setup, instruction: *mut Instruction) {
    let mut bytes = [0; LONGEST];
    // SAFETY: the buffer has that many bytes, and the instruction is QEMU's.
    let length =
        unsafe { abi::qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), LONGEST) };
    let bytes = bytes.get(..length).unwrap_or_default();
    // SAFETY: as above.
    let address = unsafe { abi::qemu_plugin_insn_vaddr(instruction) };
    // SAFETY: as above.
    let place = unsafe { abi::qemu_plugin_insn_haddr(instruction) } as usize;
    let call = |callback: Callback, flags, data: u64| {
        // SAFETY: the function lives as long as the plugin; the data is a number.
        unsafe {
            abi::qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, flags, data as _);
        }
    };
    // In this order they are called: an exit is booked before the first instruction after it is
    // counted, VMRUN and the markers after they were.
    if place != 0 && lock(&AFTER_VMRUN).contains(&place) {
        call(on_leave, abi::NO_REGISTERS, 0);
    }
    if let Some(vector) = setup.vectors.get(&address) {
        call(on_interrupt, abi::NO_REGISTERS, u64::from(*vector));
    }
    if setup.profile.contains(&address) {
        call(on_step, abi::NO_REGISTERS, address);
    }
    // SAFETY: the counter is the plugin's.
    unsafe {
        abi::qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
            instruction,
            abi::ADD,
            setup.executed,
            1,
        );
    }
    match code::kind(bytes) {
        Kind::Plain => {}
        Kind::Halt => call(on_halt, abi::NO_REGISTERS, 0),
        Kind::Open(window) => call(on_open, abi::NO_REGISTERS, window.into()),
        Kind::Close(window) => call(on_close, abi::NO_REGISTERS, window.into()),
        Kind::Vmrun => {
            call(on_enter, abi::READS_REGISTERS, 0);
            let next = place + length;
            let mut places = lock(&AFTER_VMRUN);
            if place != 0 && !places.contains(&next) {
                places.push(next);
            }
        }
    }
}

/// Instructions of a CPU so far.
fn executed(cpu: c_uint) -> u64 {
    // SAFETY: the scoreboard grows with the CPUs.
    SETUP.get().map_or(0, |setup| unsafe { abi::qemu_plugin_u64_get(setup.executed, cpu) })
}

extern "C" fn on_enter(cpu: c_uint, _data: *mut c_void) {
    let handle = *slot(&mut lock(&RAX), cpu);
    *slot(&mut lock(&VMCB), cpu) = if handle == 0 {
        0
    } else {
        read(|to| {
            // SAFETY: the handle is QEMU's, and the callback said that it reads registers.
            unsafe { abi::qemu_plugin_read_register(handle as *mut _, to) > 0 }
        })
        .unwrap_or_default()
    };
    slot(&mut lock(&ACCOUNTS), cpu).enter(executed(cpu));
}

extern "C" fn on_leave(cpu: c_uint, _data: *mut c_void) {
    let vmcb = *slot(&mut lock(&VMCB), cpu);
    let base = SETUP.get().map_or(0, |setup| setup.physical);
    let at = base.wrapping_add(vmcb).wrapping_add(EXITCODE);
    let code = (vmcb != 0).then(|| {
        read(|to| {
            // SAFETY: called in the context of a CPU.
            unsafe { abi::qemu_plugin_read_memory_vaddr(at, to, size_of::<u64>()) }
        })
    });
    let code = code.flatten().unwrap_or(UNKNOWN);
    slot(&mut lock(&ACCOUNTS), cpu).leave(executed(cpu), code);
}

/// Eight bytes that `fill` puts into an array of GLib's.
fn read(fill: impl FnOnce(*mut abi::Array) -> bool) -> Option<u64> {
    // SAFETY: a constructor.
    let array = unsafe { abi::g_byte_array_new() };
    let filled = fill(array);
    // SAFETY: just made, and freed below.
    let filled = unsafe { array.as_ref() }
        .filter(|array| filled && array.length as usize >= size_of::<u64>());
    let value = filled.map(|array| {
        // SAFETY: the array holds eight bytes.
        unsafe { array.data.cast::<u64>().read_unaligned() }
    });
    // SAFETY: no other code uses it.
    unsafe { abi::g_byte_array_free(array, 1) };
    value
}

/// Outside windows only the hypervisor's instructions are recorded, which lie in the lower half. A kernel's boot would be
/// expensive to record and is not needed.
extern "C" fn on_step(cpu: c_uint, address: *mut c_void) {
    let mut accounts = lock(&ACCOUNTS);
    let account = slot(&mut accounts, cpu);
    let hypervisors = account.level == Level::Host && address as i64 >= 0;
    if hypervisors || OPEN.load(Ordering::Relaxed) > 0 {
        account.step(address as u64);
    }
}

extern "C" fn on_interrupt(cpu: c_uint, vector: *mut c_void) {
    slot(&mut lock(&ACCOUNTS), cpu).interrupted(vector as usize as u8);
}

extern "C" fn on_halt(cpu: c_uint, _data: *mut c_void) {
    slot(&mut lock(&ACCOUNTS), cpu).halts += 1;
}

/// All accounts, each with what its CPU has executed up to now.
fn settled() -> Vec<Account> {
    // SAFETY: a question.
    let cpus = unsafe { abi::qemu_plugin_num_vcpus() };
    let mut accounts = lock(&ACCOUNTS);
    for cpu in 0..cpus as c_uint {
        slot(&mut accounts, cpu).settle(executed(cpu));
    }
    accounts.clone()
}

extern "C" fn on_open(_cpu: c_uint, window: *mut c_void) {
    let window = window as usize as u8;
    let now = settled();
    if let Some(output) = lock(&OUTPUT).as_mut() {
        output.open.retain(|(other, _)| *other != window);
        output.open.push((window, now));
        OPEN.store(output.open.len(), Ordering::Relaxed);
    }
}

extern "C" fn on_close(_cpu: c_uint, window: *mut c_void) {
    let window = window as usize as u8;
    let now = settled();
    if let Some(output) = lock(&OUTPUT).as_mut() {
        let Some(at) = output.open.iter().position(|(other, _)| *other == window) else { return };
        let (_, then) = output.open.remove(at);
        OPEN.store(output.open.len(), Ordering::Relaxed);
        output.write(Some(window), &then, &now);
    }
}

extern "C" fn on_exit(_id: Id, _data: *mut c_void) {
    let now = settled();
    if let Some(output) = lock(&OUTPUT).as_mut() {
        output.write(None, &[], &now);
    }
}

impl Output {
    fn write(&mut self, window: Option<u8>, then: &[Account], now: &[Account]) {
        let nothing = Account::default();
        let earlier = then.iter().chain(std::iter::repeat(&nothing));
        let cpus: Vec<Account> =
            now.iter().zip(earlier).map(|(now, then)| now.since(then)).collect();
        let line = report::line(window, self.number, &cpus);
        self.number += 1;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            eprintln!("nexit_count: cannot write the window: {error}");
        }
    }
}
