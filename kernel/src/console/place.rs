//! Which UART has the serial line: one of a PC's that answers, until the configuration, the firmware's
//! tables or a card say better. What was said before is repeated where the line goes on.

use arch::address::HpaRange;
use arch::uart::UartPlace;
use config::{Config, Console};
use cpu::config_space::MachineConfigSpace;
use firmware::SerialPort;
use mux::uart;

use super::output::move_to;
use super::{Uart, drain, logln, show_log};

/// 115,200 baud of a PC's clock.
const FASTEST: Option<u16> = Some(1);

fn answers(place: UartPlace) -> bool {
    uart::answers(&mut Uart(place))
}

fn name(place: UartPlace) -> &'static str {
    place.first_port().map_or("the UART", uart::name)
}

/// Looks for a UART where PCs have them.
///
/// # Safety
/// Ring 0, once, before anything is logged.
pub(crate) unsafe fn initialise() {
    let base = uart::find(|base| answers(UartPlace::port(base)));
    // SAFETY: the caller vouches that nobody else drives it.
    unsafe { move_to(base.map(UartPlace::port), FASTEST, None) };
}

/// Does what the configuration says of the console, but for cards, which are not known yet.
pub(crate) fn configure(wanted: Option<Console>) {
    let found = super::uart();
    match wanted {
        Some(Console::None) => {
            logln!("nexit.toml: console = \"none\": the serial line falls silent here");
            drain();
            // SAFETY: nothing is driven any more.
            unsafe { move_to(None, None, None) };
        }
        Some(Console::Port(base)) => {
            let place = UartPlace::port(base);
            if Some(place) == found {
                say(place, "");
            } else if answers(place) {
                go_on(place, FASTEST, None, "");
            } else {
                logln!("nexit.toml: console: no UART answers at {place}: the console stays");
            }
        }
        Some(Console::Card(_)) | None => {
            if let Some(place) = found {
                say(place, "");
            }
        }
    }
}

fn say(place: UartPlace, why: &str) {
    logln!("console: {} at {place}{why}", name(place));
}

/// Goes on there.
fn go_on(place: UartPlace, divisor: Option<u16>, card: Option<arch::Bdf>, why: &str) {
    logln!("console: goes on at {}, {place}{why}", name(place));
    drain();
    // SAFETY: a UART answers there; no guest has it, as `config` has seen to, or gets it while it is the
    // console (`leave_card`).
    unsafe { move_to(Some(place), divisor, card) };
    show_log();
    say(place, why);
}

/// Goes on where the firmware has its console, if the configuration names none. Its debug port serves
/// where there is no other UART.
pub(crate) fn follow_firmware(
    ports: &[SerialPort],
    config: &Config,
    is_ram: impl Fn(HpaRange) -> bool + Copy,
    map: impl Fn(HpaRange) -> bool,
) {
    if config.console.is_some() {
        return;
    }
    for port in ports {
        let (table, place, found) = (port.table, port.place, super::uart());
        if found == Some(place) && matches!(port.divisor, None | FASTEST) {
            return logln!("console: the {table} names it, too");
        }
        if found.is_some() && table != "SPCR" {
            return logln!("the {table} names a serial port at {place}: the console stays");
        }
        let taken = place.first_port().and_then(|base| config.check_console(base).err());
        if taken.is_some() {
            logln!("the {table} names the serial port at {place}, which is a guest's");
        } else if port.is_in_ram(is_ram) {
            logln!("the {table} names a serial port at {place}, where RAM is: left out");
        } else if !place.range().is_none_or(&map) || !answers(place) {
            logln!("the {table} names a serial port at {place}, where no UART answers: left out");
        } else {
            return go_on(
                place,
                port.divisor,
                None,
                match table {
                    "SPCR" => ", which the SPCR names",
                    _ => ", which the DBG2 names",
                },
            );
        }
    }
}

/// Goes on at the serial card that the configuration names, or where there is no UART at the first that
/// answers.
pub(crate) fn find_card(
    config: &Config,
    space: &mut MachineConfigSpace,
    functions: &[pci::Function],
    is_ram: impl Fn(HpaRange) -> bool + Copy,
    map: impl Fn(HpaRange) -> bool,
) {
    let wanted = match config.console {
        Some(Console::Card(function)) => Some(function),
        None if super::uart().is_none() => None,
        Some(Console::None | Console::Port(_)) | None => return say_none(),
    };
    let cards = functions.iter().filter(|it| pci::serial::is_card(it));
    for card in cards.filter(|card| wanted.is_none_or(|wanted| card.bdf == wanted)) {
        let found = pci::serial::find(space, card, |place| {
            !place.range().is_some_and(is_ram) && place.range().is_none_or(&map) && answers(place)
        });
        if let Some(place) = found {
            logln!("console: a serial card at {}", card.bdf);
            return go_on(place, FASTEST, Some(card.bdf), "");
        }
    }
    if let Some(wanted) = wanted {
        logln!("nexit.toml: console: no serial card with a 16550 answers at {wanted}");
    }
    say_none();
}

fn say_none() {
    if super::uart().is_none() {
        logln!("console: no UART: there are no keys and no monitor");
    }
}
