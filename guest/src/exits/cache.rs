//! INVD, WBINVD and WBNOINVD. They work on the caches that all guests share: INVD would throw away what others have
//! written, and WBINVD in a loop leaves nobody a cache. So they exit, and what is done is what the guest's devices need: a
//! device may reach memory past the caches, and finds there what has been written back. A guest without one needs
//! nothing; nor does it gain anything from INVD's being taken by its word.

use arch::machine::Machine;
use arch::vcpu::Vcpu;

use crate::vm::{Context, Platform};

impl<P: Platform> Context<'_, P> {
    /// One of them. The CPU has checked the privilege level.
    #[cold]
    #[inline(never)]
    pub(super) fn cache_instruction(&mut self) {
        if self.vm.bus.functions().next().is_some() {
            self.machine.write_back_caches();
        }
        let length = self.vcpu.instruction_length(self.bare_cache_instruction());
        self.vcpu.skip_instruction(length);
    }

    /// Its length for a CPU that does not tell: F3 makes WBNOINVD of WBINVD.
    fn bare_cache_instruction(&self) -> u8 {
        const REPEAT: u8 = 0xf3;
        let bytes = insn::fetch_instruction(self.vcpu, self.memory).map(|(bytes, _)| bytes);
        if bytes.is_ok_and(|bytes| bytes.first() == Some(&REPEAT)) { 3 } else { 2 }
    }
}

impl<P: Platform, V> Context<'_, P, V> {
    /// A bus lock: who makes many of them waits. Its CPU is its own, so nobody else does.
    #[cold]
    #[inline(never)]
    pub(super) fn bus_lock(&mut self) {
        /// More turns than a wait needs at any frequency, should the TSC stand still.
        const MAX_TURNS: u32 = 100_000;
        let (now, khz) = (self.machine.tsc(), self.machine.tsc_khz());
        let until = self.cpu.bus_locks.at(now, khz);
        for _ in 0..MAX_TURNS {
            if self.machine.tsc() >= until {
                break;
            }
            core::hint::spin_loop();
        }
    }
}
