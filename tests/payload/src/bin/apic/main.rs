//! The local APIC in all its modes, from a guest's side; with a second CPU also the IPIs between the
//! two.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod alone;
mod forms;
mod interrupts;
mod local;
mod pair;

use cpu::instructions::cpuid;
use payload::{power_off, say};

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    interrupts::load::<0>();
    x86_64::instructions::interrupts::enable();
    alone::modes_change_as_the_manual_allows();
    alone::ipis_to_itself_arrive();
    forms::every_form_of_store_writes();
    forms::every_form_of_load_reads();
    alone::the_timer_works("xAPIC mode");
    alone::priorities_hold();
    alone::the_page_moves();
    alone::software_disabled_and_back();
    alone::disabled_and_back();
    alone::the_timer_works("xAPIC mode, after a reset");
    // CPUID "Extended Topology Enumeration Leaf": logical processors of the package.
    if cpuid(0xb, 1).ebx > 1 {
        pair::all();
    }
    alone::x2apic_mode_is_free_again();
    alone::the_timer_works("x2APIC mode");
    alone::the_icr_path_is_measured();
    say!("done");
    power_off()
}
