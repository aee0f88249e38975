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
