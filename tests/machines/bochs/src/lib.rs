//! The devices of [`devices`] for Bochs: C functions that `plugin.cc` calls, and a [`Host`] of C functions
//! that it offers. The two lists are there and here; they must agree.
//!
//! Bochs runs its devices on one thread. A device's pin leads back here, to the I/O APIC: so pins move
//! when everything else of a call is done.

use std::ffi::c_char;
use std::fs;
use std::path::Path;

use devices::acpi::RSDP_SIZE;
use devices::options::Options;
use devices::{Host, Interrupt, Machine, Timer};

unsafe extern "C" {
    fn bochs_memory(at: u64, data: *mut u8, length: usize, write: bool) -> bool;
    fn bochs_deliver(vector: u8, destination: u32, mode: u8, logical: bool, level: bool);
    fn bochs_now() -> u64;
    fn bochs_wake(timer: u32, ticks: u64);
    fn bochs_cancel(timer: u32);
    fn bochs_move_pin(device: u8, pin: u8, up: bool);
    fn bochs_legacy_vector() -> u8;
    fn bochs_log(line: *const c_char, length: usize);
}

/// What `plugin.cc` has a pointer to.
#[derive(Debug, Default)]
pub struct Devices {
    options: Options,
    machine: Option<Machine>,
    /// What the report said last.
    reported: String,
}

/// A call's view of Bochs.
#[derive(Default)]
struct Bochs {
    pins: Vec<(u8, u8, bool)>,
}

const fn number(timer: Timer) -> u32 {
    match timer {
        Timer::Unit => 0,
        Timer::Queues(place) => 1 + 2 * place as u32,
        Timer::Engine(place) => 2 + 2 * place as u32,
    }
}

impl Host for Bochs {
    fn read(&mut self, at: u64, data: &mut [u8]) -> bool {
        // SAFETY: Bochs fills the slice, and no more.
        unsafe { bochs_memory(at, data.as_mut_ptr(), data.len(), false) }
    }
    fn write(&mut self, at: u64, data: &[u8]) -> bool {
        // SAFETY: Bochs only reads the slice: it writes memory.
        unsafe { bochs_memory(at, data.as_ptr().cast_mut(), data.len(), true) }
    }
    fn deliver(&mut self, interrupt: Interrupt) {
        let Interrupt { vector, destination, mode, logical, level } = interrupt;
        // SAFETY: plain numbers.
        unsafe { bochs_deliver(vector, destination, mode, logical, level) };
    }
    fn now(&self) -> u64 {
        // SAFETY: it only reads Bochs' clock.
        unsafe { bochs_now() }
    }
    fn wake(&mut self, timer: Timer, ticks: u64) {
        // SAFETY: plain numbers; `plugin.cc` checks the timer's.
        unsafe { bochs_wake(number(timer), ticks) };
    }
    fn cancel(&mut self, timer: Timer) {
        // SAFETY: as for `wake`.
        unsafe { bochs_cancel(number(timer)) };
    }
    fn move_pin(&mut self, device: u8, pin: u8, up: bool) {
        self.pins.push((device, pin, up));
    }
    fn legacy_vector(&mut self) -> u8 {
        // SAFETY: it acknowledges at the 8259s, which does not lead back here.
        unsafe { bochs_legacy_vector() }
    }
    fn log(&mut self, line: &str) {
        // SAFETY: Bochs reads so many bytes of the line.
        unsafe { bochs_log(line.as_ptr().cast(), line.len()) };
    }
}

/// Does `work`, and then moves the pins that it wants moved.
///
/// # Safety
/// `devices` is what [`vtd_new`] returned, and no other call is under way.
unsafe fn with<T: Default>(
    devices: *mut Devices,
    work: impl FnOnce(&mut Machine, &mut Bochs) -> T,
) -> T {
    let mut bochs = Bochs::default();
    // SAFETY: the caller's promise; the borrow ends before the pins move.
    let machine = unsafe { devices.as_mut() }.and_then(|devices| devices.machine.as_mut());
    let result = machine.map(|machine| work(machine, &mut bochs)).unwrap_or_default();
    for (device, pin, up) in bochs.pins {
        // SAFETY: plain numbers; this may call `vtd_line`, as nothing is borrowed any more.
        unsafe { bochs_move_pin(device, pin, up) };
    }
    result
}

/// What only reads the machine.
///
/// # Safety
/// As for [`with`].
unsafe fn read<T: Default>(devices: *mut Devices, work: impl FnOnce(&Machine) -> T) -> T {
    // SAFETY: the caller's promise.
    let devices = unsafe { devices.as_ref() };
    devices.and_then(|devices| devices.machine.as_ref()).map(work).unwrap_or_default()
}

/// Puts a refusal where the caller wants it, with a 0 behind it.
///
/// # Safety
/// `place` has room for `room` bytes.
unsafe fn tell(result: Result<(), String>, place: *mut c_char, room: usize) -> bool {
    let Err(sentence) = result else { return true };
    let length = sentence.len().min(room.saturating_sub(1));
    // SAFETY: the caller's promise.
    let place = unsafe { std::slice::from_raw_parts_mut(place.cast::<u8>(), room) };
    place
        .iter_mut()
        .zip(sentence.bytes().take(length).chain([0]))
        .for_each(|(to, from)| *to = from);
    false
}

/// No devices yet: options come first.
#[unsafe(no_mangle)]
pub extern "C" fn vtd_new() -> *mut Devices {
    Box::into_raw(Box::default())
}

/// Takes an option. False, and a sentence, where it is none.
///
/// # Safety
/// `devices` is from [`vtd_new`], `text` has `length` bytes, `sentence` room for `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_option(
    devices: *mut Devices,
    text: *const c_char,
    length: usize,
    sentence: *mut c_char,
    room: usize,
) -> bool {
    // SAFETY: the caller's promise.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    // SAFETY: the caller's promise.
    let devices = unsafe { devices.as_mut() };
    let text = String::from_utf8_lossy(text);
    let result = devices.map_or(Ok(()), |devices| devices.options.take(&text));
    // SAFETY: the caller's promise.
    unsafe { tell(result, sentence, room) }
}

/// Makes the devices. False, and a sentence, where they cannot be made.
///
/// # Safety
/// As for [`vtd_option`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_start(
    devices: *mut Devices,
    processors: u8,
    sentence: *mut c_char,
    room: usize,
) -> bool {
    // SAFETY: the caller's promise.
    let Some(devices) = (unsafe { devices.as_mut() }) else { return false };
    let result = Machine::new(&devices.options, processors);
    let result = result.map(|machine| devices.machine = Some(machine));
    // SAFETY: the caller's promise.
    unsafe { tell(result, sentence, room) }
}

/// Where the unit's registers are; 0 for no unit.
///
/// # Safety
/// `devices` is from [`vtd_new`], and no other call is under way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_unit_base(devices: *mut Devices) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { read(devices, |machine| machine.unit_base().unwrap_or(0)) }
}

/// The device number of the controller at `place`; 0 where there is none.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_controller(devices: *mut Devices, place: usize) -> u8 {
    // SAFETY: the caller's promise.
    unsafe {
        read(devices, |machine| machine.controllers().get(place).map_or(0, |one| one.device()))
    }
}

/// A reset of the machine.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_reset(devices: *mut Devices) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.reset(bochs)) }
}

/// Looks at 20 bytes that may be the firmware's RSDP.
///
/// # Safety
/// As for [`vtd_unit_base`]; `rsdp` points to 20 bytes that nobody else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_rsdp(devices: *mut Devices, rsdp: *mut [u8; RSDP_SIZE]) -> bool {
    // SAFETY: the caller's promise.
    let Some(rsdp) = (unsafe { rsdp.as_mut() }) else { return false };
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.look_at_rsdp(bochs, rsdp)) }
}

/// A byte of the window with the ACPI tables.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_table_byte(devices: *mut Devices, offset: usize) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { read(devices, |machine| machine.table_byte(offset)) }
}

/// A timer's time has come.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_timer(devices: *mut Devices, timer: u32) {
    let place = (timer.saturating_sub(1) / 2) as usize;
    let timer = match timer {
        0 => Timer::Unit,
        _ if timer % 2 == 1 => Timer::Queues(place),
        _ => Timer::Engine(place),
    };
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.timer(bochs, timer)) }
}

/// Reads a word of the unit's registers.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_unit_read(devices: *mut Devices, offset: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { read(devices, |machine| machine.unit_read(offset)) }
}

/// Writes one.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_unit_write(devices: *mut Devices, offset: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.unit_write(bochs, offset, value)) }
}

/// Reads a register of the I/O APIC.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_io_apic_read(devices: *mut Devices, offset: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { read(devices, |machine| machine.io_apic_read(offset)) }
}

/// Writes one.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_io_apic_write(devices: *mut Devices, offset: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.io_apic_write(bochs, offset, value)) }
}

/// A line of the I/O APIC has a new level.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_line(devices: *mut Devices, line: u8, up: bool) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.set_line(bochs, line, up)) }
}

/// A CPU ended a level-triggered interrupt.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_end_of_interrupt(devices: *mut Devices, vector: u8) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.end_of_interrupt(bochs, vector)) }
}

/// Reads a byte of a controller's configuration space.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_config_read(devices: *mut Devices, place: usize, at: usize) -> u8 {
    let now = Bochs::default().now();
    // SAFETY: the caller's promise.
    unsafe {
        read(devices, |machine| {
            machine.controllers().get(place).map_or(0xff, |one| one.config_read(now, at))
        })
    }
}

/// Writes one to four bytes of it.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_config_write(
    devices: *mut Devices,
    place: usize,
    at: usize,
    value: u32,
    length: usize,
) {
    let bytes = value.to_le_bytes();
    let bytes = bytes.get(..length).unwrap_or(&bytes);
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.config_write(bochs, place, at, bytes)) }
}

/// Where a controller's registers answer; 0 for nowhere.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_bar(devices: *mut Devices, place: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        read(devices, |machine| {
            machine.controllers().get(place).and_then(|one| one.bar()).unwrap_or(0)
        })
    }
}

/// Reads a word of its registers.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_read(devices: *mut Devices, place: usize, offset: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        read(devices, |machine| {
            machine.controllers().get(place).map_or(u32::MAX, |one| one.read(offset))
        })
    }
}

/// Writes one.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_write(devices: *mut Devices, place: usize, offset: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { with(devices, |machine, bochs| machine.write(bochs, place, offset, value)) }
}

/// Writes the counters to the file of the options, if they say anything new: a killed Bochs then has
/// written nearly all.
///
/// # Safety
/// As for [`vtd_unit_base`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vtd_report(devices: *mut Devices) {
    let now = Bochs::default().now();
    // SAFETY: the caller's promise.
    let Some(devices) = (unsafe { devices.as_mut() }) else { return };
    let (Some(path), Some(machine)) = (&devices.options.report, &devices.machine) else { return };
    let text = machine.report(now);
    let counters = |text: &str| text.split_once('\n').map(|(_, counters)| counters.to_owned());
    if counters(&text) != counters(&devices.reported) {
        // A reader sees all of the old one, or all of the new one.
        let written = path.with_extension("new");
        let done = fs::write(&written, &text).and_then(|()| fs::rename(&written, path));
        if let Err(error) = done {
            complain(path, &error);
        }
        devices.reported = text;
    }
}

fn complain(path: &Path, error: &std::io::Error) {
    Bochs::default().log(&format!("cannot write {}: {error}", path.display()));
}
