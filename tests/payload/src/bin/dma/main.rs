//! A guest that tries to reach what is not its own: through configuration space, through ports,
//! through addresses, and by programming its assigned NVMe controller to read and write memory
//! outside of it.
#![no_std]
#![no_main]

mod nvme;

use arch::Hpa;
use arch::machine::Width;
use cpu::instructions::port_read;
use cpu::physical::{mmio_read, mmio_write};
use payload::pci::{bar, config_read, config_write};
use payload::{power_off, say, verdict, watchdog_calls};

use crate::nvme::{Controller, wait_until};

const NVME_CLASS: u32 = 0x01_0802;
/// RAM of the machine (the harness gives it 1 GiB) that is not RAM of the guest (which has 64 MiB).
const OTHERS_RAM: u64 = 0x3000_0000;
/// An address at which the machine has nothing.
const NOWHERE: u64 = 0x7_0000_0000;

/// Lists what the guest sees on bus 0; returns the NVMe controller.
fn scan() -> Option<u32> {
    let mut nvme = None;
    for device in 0..32 {
        let identity = config_read(device, 0);
        if identity != u32::MAX {
            let class = config_read(device, 8) >> 8;
            let (vendor, product) = (identity & 0xffff, identity >> 16);
            say!("sees 00:{device:02x}.0 {vendor:04x}:{product:04x} class {class:06x}");
            if class == NVME_CLASS {
                nvme = Some(device);
            }
        }
    }
    nvme
}

fn what_is_not_the_guests_reads_as_ones() {
    let unowned = config_read(31, 0);
    verdict(
        "a device that is not assigned is invisible",
        unowned == u32::MAX,
        format_args!("00:1f.0 reads {unowned:#x}"),
    );
    // SAFETY: a port that this guest does not own: the hypervisor answers.
    let port = unsafe { port_read(0x1ce, Width::Word) };
    verdict(
        "a port that is not the guest's reads as all ones",
        port == 0xffff,
        format_args!("{port:#x}"),
    );
    // The IOMMU's registers, where this machine has them.
    for (what, at) in [("the IOMMU", 0xfed9_0000), ("RAM of others", OTHERS_RAM)] {
        let at = Hpa::new(at);
        // SAFETY: nothing is mapped there: the hypervisor answers.
        unsafe { mmio_write(at, Width::Dword, 0) };
        // SAFETY: as above.
        let value = unsafe { mmio_read(at, Width::Dword) };
        verdict(
            "an address that is not the guest's reads as all ones",
            value == u64::from(u32::MAX),
            format_args!("{what} at {at}: {value:#x}"),
        );
    }
}

/// The IOMMU's faults are read at the watchdog's call, and a second one before it may be lost.
fn wait_for_the_watchdog() {
    let before = watchdog_calls();
    for _ in 0..5 {
        if wait_until(|| watchdog_calls() > before) {
            return;
        }
    }
    say!("FAILED: the watchdog does not call");
}

fn foreign_dma(device: u32) {
    let vendor = config_read(device, 0) & 0xffff;
    let mut controller = Controller::new(Hpa::new(bar(device, 0)));
    // Memory decoding and bus mastering.
    config_write(device, 4, config_read(device, 4) | 0x6);
    let ready = controller.enable();
    verdict(
        "the assigned controller answers",
        ready,
        format_args!("registers at {}", controller.registers),
    );
    let own = |controller: &mut Controller, when: &str| {
        let seen = controller.vendor_by_dma();
        verdict(
            "DMA into the guest's own memory works",
            seen == vendor,
            format_args!("{when}: {seen:#x}"),
        );
    };
    own(&mut controller, "before");
    let status = controller.identify_to(OTHERS_RAM);
    // QEMU's controller does not notice that the bus refused it, and says 0, success.
    say!("made the controller write to {OTHERS_RAM:#x}, status {status:x?}");
    wait_for_the_watchdog();
    let ready = controller.enable_with(NOWHERE);
    controller.ring();
    wait_for_the_watchdog();
    say!("made the controller (ready: {ready}) fetch a command from {NOWHERE:#x}");
    let ready = controller.enable();
    verdict("the controller can be enabled again", ready, format_args!("after the faults"));
    own(&mut controller, "after");
    // Not tried: a page of data to the interrupt address range, which ends QEMU itself.
    foreign_message(device, controller.registers);
    wandering_registers(device, &mut controller);
    let ready = controller.enable();
    verdict("the controller can be enabled again", ready, format_args!("where it was at first"));
    own(&mut controller, "at the end");
    for at in (0x400_0000..0x4000_0000).step_by(0x400_0000) {
        let _ = controller.identify_to(at);
    }
}

/// Programs the first MSI-X entry to interrupt a CPU that is not the guest's, and enables MSI-X.
fn foreign_message(device: u32, registers: Hpa) {
    const MSI_X: u32 = 0x11;
    let mut at = config_read(device, 0x34) & 0xff;
    while at != 0 && config_read(device, at) & 0xff != MSI_X {
        at = config_read(device, at) >> 8 & 0xff;
    }
    let table = registers.wrapping_add(u64::from(config_read(device, at + 4) & !7));
    for (word, value) in [(0, 0xfee0_1000_u64), (4, 0), (8, 0x41), (12, 0)] {
        // SAFETY: the guest's own device.
        unsafe { mmio_write(table.wrapping_add(word), Width::Dword, value) };
    }
    config_write(device, at, config_read(device, at) | 1 << 31);
    say!("programmed a message for another CPU");
}

/// Moves the registers through the whole address space; they answer wherever they are.
fn wandering_registers(device: u32, controller: &mut Controller) {
    const PLACES: u64 = 1900;
    let (home, version) = (controller.registers, controller.version());
    let mut answers = 0;
    for place in 0..PLACES {
        let at = (1 << 33) + (place << 29);
        config_write(device, 0x14, (at >> 32) as u32);
        config_write(device, 0x10, at as u32);
        // The payload's tables show the first 4 GiB only: it looks where it can.
        answers += u64::from(config_read(device, 0x14) == (at >> 32) as u32);
    }
    config_write(device, 0x14, (home.as_u64() >> 32) as u32);
    config_write(device, 0x10, home.as_u64() as u32);
    let back = controller.version() == version;
    verdict(
        "registers that wander through the address space come back",
        back && answers == PLACES,
        format_args!("{answers} places"),
    );
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    let nvme = scan();
    what_is_not_the_guests_reads_as_ones();
    match nvme {
        Some(device) => foreign_dma(device),
        None => say!("FAILED: no NVMe controller is assigned"),
    }
    say!("done");
    power_off()
}
