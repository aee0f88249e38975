//! A guest that tries to reach what is not its own: through configuration space, through ports, and
//! by programming its assigned NVMe controller to read memory outside of it.
#![no_std]
#![no_main]

use arch::Hpa;
use arch::machine::Width;
use cpu::instructions::{port_read, port_write, tsc};
use cpu::physical::{mmio_read, mmio_write};
use payload::{power_off, say, verdict};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const NVME_CLASS: u32 = 0x01_0802;

fn config_read(device: u32, offset: u32) -> u32 {
    // SAFETY: the guest's own configuration ports.
    unsafe { port_write(CONFIG_ADDRESS, Width::Dword, 1 << 31 | device << 11 | offset) };
    // SAFETY: as above.
    unsafe { port_read(CONFIG_DATA, Width::Dword) }
}

fn config_write(device: u32, offset: u32, value: u32) {
    // SAFETY: the guest's own configuration ports.
    unsafe { port_write(CONFIG_ADDRESS, Width::Dword, 1 << 31 | device << 11 | offset) };
    // SAFETY: as above.
    unsafe { port_write(CONFIG_DATA, Width::Dword, value) };
}

/// The NVMe controller's registers (NVM Express Base Specification, "Controller Properties").
struct Controller {
    registers: Hpa,
}

impl Controller {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: the registers are the guest's own device.
        unsafe { mmio_read(self.registers.wrapping_add(offset), Width::Dword) as u32 }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as above.
        unsafe { mmio_write(self.registers.wrapping_add(offset), Width::Dword, u64::from(value)) };
    }

    /// Enables the controller with both admin queues at `queues`; whether it got ready.
    fn enable(&self, queues: u64) -> bool {
        const CC: u64 = 0x14;
        const CSTS: u64 = 0x1c;
        const AQA: u64 = 0x24;
        const ASQ: u64 = 0x28;
        const ACQ: u64 = 0x30;
        self.write(CC, 0);
        wait_until(|| self.read(CSTS) & 1 == 0);
        self.write(AQA, 15 << 16 | 15);
        for (register, address) in [(ASQ, queues), (ACQ, queues + 4096)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(CC, 4 << 20 | 6 << 16 | 1);
        wait_until(|| self.read(CSTS) & 1 == 1)
    }

    /// Tells the controller that a command waits in the admin queue: it reads it by DMA.
    fn ring(&self) {
        const ADMIN_SUBMISSION_DOORBELL: u64 = 0x1000;
        self.write(ADMIN_SUBMISSION_DOORBELL, 1);
    }
}

/// Polls for up to about two seconds of a 1–4 GHz counter.
fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    while tsc() - start < 4_000_000_000 {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Lists what the guest sees on bus 0; returns the NVMe controller.
fn scan() -> Option<u32> {
    let mut nvme = None;
    for device in 0..32 {
        let identity = config_read(device, 0);
        if identity != u32::MAX {
            let class = config_read(device, 8) >> 8;
            say!("sees 00:{device:02x}.0 {:04x}:{:04x} class {class:06x}", identity & 0xffff, identity >> 16);
            if class == NVME_CLASS {
                nvme = Some(device);
            }
        }
    }
    nvme
}

fn foreign_dma(device: u32) {
    /// Behind every guest's RAM here, and not RAM of the machine's first 4 GiB that it owns.
    const OUTSIDE: u64 = 0x7_0000_0000;
    let low = config_read(device, 0x10) & !0xf;
    let high = config_read(device, 0x14);
    let controller = Controller { registers: Hpa::new(u64::from(high) << 32 | u64::from(low)) };
    config_write(device, 4, config_read(device, 4) | 0x6);
    let ready = controller.enable(OUTSIDE);
    verdict("the assigned controller answers", ready, format_args!("BAR {}", controller.registers));
    controller.ring();
    let start = tsc();
    while tsc() - start < 3_000_000_000 {
        core::hint::spin_loop();
    }
    say!("rang the doorbell with queues at {OUTSIDE:#x}; still alive");
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    let nvme = scan();
    let unowned = config_read(31, 0);
    verdict(
        "a device that is not assigned is invisible",
        unowned == u32::MAX,
        format_args!("00:1f.0 reads {unowned:#x}"),
    );
    // SAFETY: a port that this guest does not own: the hypervisor answers.
    let port = unsafe { port_read(0x1ce, Width::Word) };
    verdict("a port that is not the guest's reads as all ones", port == 0xffff, format_args!("{port:#x}"));
    match nvme {
        Some(device) => foreign_dma(device),
        None => say!("no NVMe controller is assigned"),
    }
    say!("done");
    power_off()
}
