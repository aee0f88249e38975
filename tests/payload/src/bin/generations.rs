//! A guest with an NVMe controller that it uses once in each generation, by DMA and by an MSI-X message; then
//! it waits for its end. With a number on the command line it does so many transfers more, and powers off; with `moves` it moves
//! its BAR for ever, and finds the controller at each place.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

#[path = "dma/nvme.rs"]
mod nvme;

use core::sync::atomic::{AtomicU32, Ordering};

use arch::Hpa;
use arch::machine::Width;
use arch::msr;
use cpu::instructions::write_msr;
use cpu::physical::mmio_write;
use payload::pci::{bar, capability, config_read, config_write};
use payload::{loaded, power_off, say, verdict};
use x86_64::instructions::interrupts;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

use crate::nvme::{Controller, wait_until};

const NVME_CLASS: u32 = 0x01_0802;
const MSIX: u32 = 0x11;
const VECTOR: u8 = 0x51;

/// What it does after its first transfer.
#[derive(Clone, Copy)]
enum Work {
    Wait,
    Transfer(u32),
    Move,
}

static TAKEN: AtomicU32 = AtomicU32::new(0);
static mut TABLE: InterruptDescriptorTable = InterruptDescriptorTable::new();

extern "x86-interrupt" fn completion(_: InterruptStackFrame) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

/// Has entry 0 of the MSI-X table raise [`VECTOR`] on the first CPU.
fn route(device: u32) -> Option<()> {
    let capability = capability(device, MSIX)?;
    let table = config_read(device, capability + 4);
    let entry = bar(device, table & 7) + u64::from(table & !7);
    for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, u64::from(VECTOR)), (12, 0)] {
        // SAFETY: the first entry of the function's MSI-X table.
        unsafe { mmio_write(Hpa::new(entry + offset), Width::Dword, value) };
    }
    config_write(device, capability, 1 << 31);
    Some(())
}

fn live(work: Work) -> Option<()> {
    let device = (0..32).find(|device| config_read(*device, 8) >> 8 == NVME_CLASS)?;
    let command = config_read(device, 4);
    verdict("its controller is fresh", command & 4 == 0, format_args!("command {command:#x}"));
    config_write(device, 4, command | 6);
    route(device)?;
    let mut controller = Controller::new(Hpa::new(bar(device, 0)));
    let ready = controller.enable();
    let seen = controller.vendor_by_dma();
    let vendor = config_read(device, 0) & 0xffff;
    verdict("its controller answers by DMA", ready && seen == vendor, format_args!("{seen:#x}"));
    let arrived = wait_until(|| TAKEN.load(Ordering::Relaxed) > 0);
    let version = controller.version();
    verdict("its controller's interrupt arrives", arrived, format_args!("NVMe {version:#x}"));
    match work {
        Work::Wait => {}
        Work::Transfer(transfers) => transfer(&mut controller, vendor, transfers),
        Work::Move => {
            say!("lived");
            move_around(device, version);
        }
    }
    Some(())
}

/// Moves BAR 0 through the 32-bit window, so that each place needs other tables than the last one, for ever.
fn move_around(device: u32, version: u32) -> ! {
    const FIRST: u64 = 0x8000_0000;
    /// Behind it is the ECAM window.
    const LENGTH: u64 = 0x3000_0000;
    const STEP: u64 = 0x0420_4000;
    let mut wrong = 0;
    for number in 0_u64.. {
        let at = FIRST + number * STEP % LENGTH;
        config_write(device, 0x10, at as u32);
        config_write(device, 0x14, 0);
        let seen = Controller::new(Hpa::new(at)).version();
        if seen != version && wrong < 4 {
            wrong += 1;
            say!("FAILED: {seen:#x} and not {version:#x} at {at:#x}");
        }
        if number.is_multiple_of(1000) {
            say!("moved {number} times");
        }
    }
    loop {
        interrupts::enable_and_hlt();
    }
}

/// So many transfers more, each with its interrupt.
fn transfer(controller: &mut Controller, vendor: u32, transfers: u32) {
    let before = TAKEN.load(Ordering::Relaxed);
    let (mut whole, mut on_time) = (0, 0);
    for number in 1..=transfers {
        // The queues begin anew before they wrap.
        if number % 8 == 0 && !controller.enable() {
            break;
        }
        whole += u32::from(controller.vendor_by_dma() == vendor);
        let arrived = || TAKEN.load(Ordering::Relaxed) == before + number;
        on_time += u32::from(wait_until(arrived));
    }
    let taken = TAKEN.load(Ordering::Relaxed) - before;
    verdict(
        "each transfer is whole and interrupts once",
        [whole, on_time, taken] == [transfers; 3],
        format_args!("{whole} whole, {on_time} on time, {taken} interrupts of {transfers}"),
    );
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let info = unsafe { loaded(magic, info) };
    let words = info.map(|info| info.command_line.trim()).unwrap_or_default();
    let work = match words.parse() {
        Ok(transfers) => Work::Transfer(transfers),
        Err(_) if words == "moves" => Work::Move,
        Err(_) => Work::Wait,
    };
    let table = &raw mut TABLE;
    // SAFETY: one CPU, before the table is loaded.
    let idt = unsafe { &mut *table };
    idt[VECTOR].set_handler_fn(completion);
    idt.load();
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    // SAFETY: the guest's own local APIC.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, SOFTWARE_ENABLE | 0xff) };
    interrupts::enable();
    if live(work).is_none() {
        say!("FAILED: no NVMe controller with MSI-X");
    }
    say!("lived");
    if matches!(work, Work::Transfer(_)) {
        power_off();
    }
    loop {
        interrupts::enable_and_hlt();
    }
}
