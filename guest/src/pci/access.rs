//! The guest's accesses to its bus: ports 0xCF8 and 0xCFC, the ECAM window, and the BARs' registers. All of them end in
//! [`VirtualBus::config_read`], [`VirtualBus::config_write`] or a function's registers.

use arch::machine::{ConfigSpace, Machine};
use arch::{Bdf, Gpa, Width};

use super::{CONFIG_ADDRESS, CONFIG_DATA, HOST_BRIDGE, Host, VirtualBus};
use crate::memory_map::GpaRange;

/// Last port of CONFIG_DATA.
const CONFIG_DATA_LAST: u16 = 0xcff;
const CONFIG_ENABLE: u32 = 1 << 31;

/// What lies at a guest-physical address.
enum Target {
    Config(Bdf, u16),
    Bar { device: usize, bar: u8, offset: u64 },
    Shared { function: usize, bar: u8, offset: u64 },
}

impl Target {
    /// The widest access that is made in one piece.
    const fn widest(&self) -> Width {
        match self {
            Self::Config(..) => Width::Dword,
            Self::Bar { .. } | Self::Shared { .. } => Width::Qword,
        }
    }
}

impl VirtualBus {
    /// The guest reads a port; `None` where the port is not the bus's (0xCF9 is the reset
    /// register).
    pub fn port_read(&self, config: &impl ConfigSpace, port: u16, width: Width) -> Option<u32> {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            return Some(self.config_address);
        }
        is_data(port).then(|| {
            pieces(port.into(), width, Width::Dword).fold(0, |value, (i, width)| {
                let read = match self.selected(port.wrapping_add(i as u16)) {
                    Some((bdf, offset)) => self.config_read(config, bdf, offset, width),
                    None => width.mask() as u32,
                };
                value | read << (8 * i)
            })
        })
    }

    /// The guest writes a port; `false` where the port is not the bus's.
    pub fn port_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        port: u16,
        width: Width,
        value: u32,
    ) -> bool {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            // Bits 30:24 and 1:0 are reserved.
            self.config_address = value & 0x80ff_fffc;
            return true;
        }
        let is_data = is_data(port);
        if is_data {
            for (i, width) in pieces(port.into(), width, Width::Dword) {
                if let Some((bdf, offset)) = self.selected(port.wrapping_add(i as u16)) {
                    self.config_write(host, bdf, offset, width, value >> (8 * i));
                }
            }
        }
        is_data
    }

    /// The function and offset that CONFIG_ADDRESS selects for a port of CONFIG_DATA.
    fn selected(&self, port: u16) -> Option<(Bdf, u16)> {
        let enabled = self.config_address & CONFIG_ENABLE != 0 && is_data(port);
        enabled.then(|| {
            let offset = self.config_address as u16 & 0xfc | port & 3;
            (Bdf::from_requester_id((self.config_address >> 8) as u16), offset)
        })
    }

    /// The guest reads memory; `None` where nothing of the bus is there.
    pub fn mmio_read<M: Machine, C: ConfigSpace>(
        &self,
        host: &mut Host<'_, M, C>,
        gpa: Gpa,
        width: Width,
    ) -> Option<u64> {
        let widest = self.locate(gpa)?.widest();
        Some(pieces(gpa.as_u64(), width, widest).fold(0, |value, (i, width)| {
            let read = match self.locate(gpa.wrapping_add(i)) {
                Some(Target::Config(bdf, offset)) => {
                    self.config_read(host.config, bdf, offset, width).into()
                }
                Some(Target::Bar { device, bar, offset }) => match self.devices.get(device) {
                    Some(device) => device.bar_read(host.machine, bar, offset, width),
                    None => width.mask(),
                },
                Some(Target::Shared { function, bar, offset }) => match self.shared.get(function) {
                    Some(function) => function.bar_read(host.machine, bar, offset, width),
                    None => width.mask(),
                },
                None => width.mask(),
            };
            value | read << (8 * i)
        }))
    }

    /// The guest writes memory; `false` where nothing of the bus is there.
    pub fn mmio_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        gpa: Gpa,
        width: Width,
        value: u64,
    ) -> bool {
        let Some(widest) = self.locate(gpa).map(|place| place.widest()) else { return false };
        for (i, width) in pieces(gpa.as_u64(), width, widest) {
            let value = value >> (8 * i) & width.mask();
            match self.locate(gpa.wrapping_add(i)) {
                Some(Target::Config(bdf, offset)) => {
                    self.config_write(host, bdf, offset, width, value as u32);
                }
                Some(Target::Bar { device, bar, offset }) => {
                    if let Some(device) = self.devices.get_mut(device) {
                        device.bar_write(host, bar, offset, width, value);
                    }
                }
                Some(Target::Shared { function, bar, offset }) => {
                    if let Some(function) = self.shared.get_mut(function) {
                        function.bar_write(host.machine, bar, offset, width, value);
                    }
                }
                None => {}
            }
        }
        true
    }

    fn locate(&self, gpa: Gpa) -> Option<Target> {
        let start = |range: GpaRange| range.start.as_u64();
        if let Some(ecam) = self.ecam
            && (start(ecam)..ecam.end()).contains(&gpa.as_u64())
        {
            let offset = gpa.as_u64() - start(ecam);
            let bdf = Bdf::from_requester_id((offset >> 12) as u16);
            return Some(Target::Config(bdf, offset as u16 & 0xfff));
        }
        let ((function, bar), offset) = self.windows.find(gpa)?;
        if let Some(function) = self.shared.iter().position(|shared| shared.address == function) {
            return Some(Target::Shared { function, bar, offset });
        }
        let device = self.devices.iter().position(|d| d.view.function() == function)?;
        Some(Target::Bar { device, bar, offset })
    }

    /// Configuration space as the guest sees it; `offset` is naturally aligned.
    fn config_read(&self, config: &impl ConfigSpace, bdf: Bdf, offset: u16, width: Width) -> u32 {
        if bdf == HOST_BRIDGE {
            return host_bridge(offset & !3) >> (8 * (offset & 3)) & width.mask() as u32;
        }
        match self.devices.iter().find(|device| device.address == bdf) {
            Some(device) => device.view.read(config, offset, width),
            None => match self.shared.iter().find(|function| function.address == bdf) {
                Some(function) => function.config_read(offset, width),
                None => width.mask() as u32,
            },
        }
    }

    fn config_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        bdf: Bdf,
        offset: u16,
        width: Width,
        value: u32,
    ) {
        let moved = if let Some(device) = self.devices.iter_mut().find(|d| d.address == bdf) {
            device.config_write(host, offset, width, value)
        } else if let Some(function) = self.shared.iter_mut().find(|f| f.address == bdf) {
            function.config_write(offset, width, value)
        } else {
            false
        };
        if moved {
            self.sync_mappings(host);
        }
    }
}

fn is_data(port: u16) -> bool {
    (CONFIG_DATA..=CONFIG_DATA_LAST).contains(&port)
}

/// The virtual host bridge's configuration space: that of QEMU's generic PCI Express host.
const fn host_bridge(dword: u16) -> u32 {
    match dword {
        0x00 => 0x0008_1b36,
        // Memory Space and Bus Master, as every host bridge has them.
        0x04 => 0x0000_0006,
        0x08 => 0x0600_0000,
        // It has no extended space: one read says so.
        0x100.. => u32::MAX,
        _ => 0,
    }
}

/// The naturally aligned accesses, none wider than `widest`, that make up one of `width` at `at`:
/// distance from `at` in bytes, and width.
fn pieces(at: u64, width: Width, widest: Width) -> impl Iterator<Item = (u64, Width)> {
    let aligned = at.is_multiple_of(width.bytes().into());
    let unit = if aligned { width.min(widest) } else { Width::Byte };
    (0..u64::from(width.bytes())).step_by(unit.bytes().into()).map(move |i| (i, unit))
}
