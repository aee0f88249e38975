//! The hypervisor image.
//!
//! [`boot_order`] is the order of the boot as a table of contents; after it the CPU is in the run loop
//! of `run` and comes back only for exits.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod announce;
mod backend;
mod backtrace;
mod boot_order;
mod console;
mod display;
mod faults;
mod gdb;
mod hardware;
mod heap;
mod housekeeping;
mod lifecycle;
mod machine;
mod memory;
mod monitor;
mod owned;
mod partition;
mod post;
mod power;
mod probe;
mod processors;
mod ram;
mod refusal;
mod routes;
mod run;
mod stand_in;
mod vcpu_slot;
mod watchdog;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::panic::PanicInfo;

use boot::BootInfo;
use config::Config;
use cpu::exceptions::Frame;
use cpu::instructions::tsc;
use plan::Vendor;

use crate::backend::{AmdV, Backend, VtX};
use crate::console::logln;
use crate::hardware::Hardware;
use crate::monitor::GuestControl;
use crate::partition::Partition;
use crate::post::Step;
use crate::processors::Processor;
use crate::refusal::{Refusal, refuse};

/// Where `boot`'s entry code jumps to, in long mode on the boot stack.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: ring 0, and no time has been taken yet.
    unsafe { cpu::clock::take_tsc_adjustment_off() };
    let started = tsc();
    post::step(Step::Entered);
    // SAFETY: this is the first code that runs, once.
    unsafe { console::initialise() };
    // SAFETY: as above.
    unsafe { heap::initialise() };
    match boot(magic, info, started) {
        Ok(never) => match never {},
        Err(refusal) => power::refuse(&refusal),
    }
}

#[unsafe(link_section = ".text.init")]
fn boot(magic: u32, info: u64, started: u64) -> Result<Infallible, Refusal> {
    logln!("Nexit {}", env!("CARGO_PKG_VERSION"));
    // Judged once there is a screen to say it on.
    let vendor = backend::vendor();
    cpu::exceptions::install(fatal_exception);
    post::step(Step::Loader);
    // SAFETY: these are the entry's own values; the loader's memory is kept out of the free memory.
    let info = Box::leak(Box::new(unsafe { boot::entry::boot_info(magic, info) }?));
    // SAFETY: the loader's framebuffer lies outside of memory; the page table is still the entry's.
    unsafe { console::show_on(info.framebuffer) };
    post::step(Step::Processor);
    announce::processor();
    let vendor = vendor?;
    announce::capabilities(vendor);
    post::step(Step::Configuration);
    let config = configuration(info)?;
    console::configure(config.console);
    if let Some(base) = console::uart().and_then(|place| place.first_port()) {
        config.check_console(base)?;
    }
    let (hardware, processor) = boot_order::take_over(info, &config)?;
    announce::machine(&hardware, info);
    if config.probe {
        let refusal = announce::probe(&hardware);
        probe::print(&hardware, info);
        return Err(refusal);
    }
    post::step(Step::Guests);
    match vendor {
        Vendor::VtX => start_guests::<VtX>(hardware, processor, &config, started),
        Vendor::AmdV => start_guests::<AmdV>(hardware, processor, &config, started),
    }
}

/// Builds the guests, and gives each of their CPUs its processor.
#[unsafe(link_section = ".text.init")]
fn start_guests<B: Backend>(
    mut hardware: Hardware,
    processor: Processor,
    config: &Config,
    started: u64,
) -> Result<Infallible, Refusal> {
    housekeeping::attend_operator(monitor::poll_input);
    let owned = partition::planned::<B>(&hardware, config)?;
    let names = config.guests.iter().map(|guest| guest.name.clone());
    hardware.owned = names.zip(owned.iter().cloned()).collect();
    let hardware: &'static Hardware = Box::leak(Box::new(hardware));
    hardware.functions.iter().for_each(|function| console::add_function(function.bdf));
    let mut partitions: Vec<&'static Partition<B>> = Vec::new();
    leave_devices(hardware, config, &owned);
    let shares = partition::shares(hardware, config)?;
    let guests = config.guests.iter().zip(&owned).zip(shares).enumerate();
    for (index, ((guest, functions), shares)) in guests {
        console::add_guest(&guest.name);
        let attend = || housekeeping::attend(hardware, processor.apic);
        let partition = Partition::build(hardware, index, guest, functions, shares, attend)?;
        partitions.push(&*Box::leak(Box::new(partition)));
    }
    let iommu = hardware.iommu.map_or("none", |iommu| iommu.lock().name());
    console::report(format_args!(
        "{{\"backend\":\"{}\",\"iommu\":\"{iommu}\",\"boot_tsc\":{},\"memory_bytes\":{},\
         \"free_bytes\":{}}}",
        B::NAME,
        tsc() - started,
        hardware.memory.own(),
        hardware.memory.available()
    ));
    monitor::set_guests(
        partitions.iter().map(|partition| *partition as &dyn GuestControl).collect(),
    );
    watchdog::arm_console(hardware);
    for (guest, partition) in config.guests.iter().zip(&partitions) {
        if let Some(gdb) = guest.gdb {
            let_gdb_in(hardware, partition, gdb);
        }
    }
    post::step(Step::Running);
    serve(hardware, &processor, &partitions)
}

/// The boot is over: the guests run, and the boot processor looks after what concerns them all. From here on nothing
/// runs that only the boot needs, whose memory is free now.
#[inline(never)]
fn serve<B: Backend>(
    hardware: &'static Hardware,
    processor: &Processor,
    partitions: &[&'static Partition<B>],
) -> ! {
    // SAFETY: `nexit stats` finds nothing of it in what is reached from here on, and the other processors sleep.
    unsafe { memory::free_init() };
    lifecycle::enter(partitions);
    processors::work(processor, |seen| housekeeping::wait(hardware, processor, seen))
}

/// Lets a gdb of a guest in at a UART, or at the console.
fn let_gdb_in<B: Backend>(hardware: &Hardware, partition: &Partition<B>, gdb: config::Gdb) {
    let name = partition.name();
    let base = gdb.uart().map(|uart| uart.ports().first);
    let place = gdb.uart().map_or("the console", config::Uart::name);
    if let Err(why) = gdb::open(partition.index(), partition.slots(), base) {
        return logln!("guest {name}: no gdb at {place}: {why}");
    }
    if let Some(base) = base {
        gdb::interrupt_on_receive(watchdog::arm_uart(hardware, base));
    }
    housekeeping::attend_debugger(gdb::poll_input);
    logln!("guest {name}: gdb at {place}");
}

/// Leaves the screen, and the card that the console's UART is on, to the guest that has the device, before
/// that is reset.
#[unsafe(link_section = ".text.init")]
fn leave_devices(hardware: &Hardware, config: &Config, owned: &[Vec<arch::Bdf>]) {
    const DISPLAY: u32 = 0x03;
    let is_display = |bdf: &&arch::Bdf| {
        hardware.functions.iter().any(|it| it.bdf == **bdf && it.class >> 16 == DISPLAY)
    };
    for (guest, functions) in config.guests.iter().zip(owned) {
        if let Some(function) = functions.iter().find(is_display).filter(|_| console::on_screen()) {
            logln!(
                "the screen is guest {}'s, with {function}: the log continues elsewhere",
                guest.name
            );
            console::leave_screen(|range| memory::show_no_more(hardware.memory, range));
        }
        if let Some(card) = console::card().filter(|card| functions.contains(card)) {
            logln!("the serial card {card} is guest {}'s: its line ends here", guest.name);
            console::leave_card();
        }
    }
}

/// Finds and parses `nexit.toml`.
fn configuration(info: &BootInfo<'_>) -> Result<Config, Refusal> {
    let module = info.module(config::FILE_NAME).ok_or_else(|| {
        refuse!(
            "the loader passed no module named {}: add it to the boot entry (module2 /boot/{0} {0})",
            config::FILE_NAME
        )
    })?;
    // SAFETY: modules are RAM that nobody writes while the hypervisor boots.
    let bytes = unsafe { cpu::physical::bytes(module.range.start, module.range.length as usize) };
    let text = core::str::from_utf8(bytes).map_err(|error| {
        refuse!("{} is not text: byte {} is no UTF-8", config::FILE_NAME, error.valid_up_to())
    })?;
    Ok(config::parse(text)?)
}

/// An exception in the hypervisor itself is our own bug.
fn fatal_exception(frame: &Frame) -> ! {
    let cr2: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    last_words(
        format_args!(
            "raised exception {} (error code {:#x}) at {:#x}, CR2 {cr2:#x}\nregisters: {frame:#x?}",
            frame.vector, frame.error_code, frame.rip
        ),
        Some(frame.rip),
        frame.rsp,
    )
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    last_words(format_args!("failed: {info}"), None, cpu::instructions::stack_pointer())
}

/// `at`: the instruction that failed, where it is known; `stack`: the stack pointer then.
fn last_words(what: core::fmt::Arguments<'_>, at: Option<u64>, stack: u64) -> ! {
    // SAFETY: this CPU never goes on.
    unsafe { console::break_lock() };
    post::failed();
    logln!("error: the hypervisor itself {what}");
    backtrace::log(at, stack);
    logln!("halted");
    console::drain();
    cpu::instructions::halt_forever()
}
