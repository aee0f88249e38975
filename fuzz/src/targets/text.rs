//! What people write.

use capture::Capture;

use crate::input::Input;

pub(super) fn configuration(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match config::parse(&text) {
        Ok(config) => {
            assert!(config.probe || !config.guests.is_empty());
            for guest in &config.guests {
                assert!(guest.memory >= config::MIN_MEMORY);
                assert!(guest.memory.is_multiple_of(config::MEMORY_UNIT));
                assert!(!guest.cpus.is_empty() && !guest.name.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn monitor(input: &[u8]) {
    let guests = ["a", "7", "2"].map(str::to_owned);
    match mux::parse(&String::from_utf8_lossy(input), &guests) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn machine_file(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let read =
        if text.starts_with('{') { Capture::from_json(&text) } else { Capture::from_toml(&text) };
    match read {
        Ok(capture) => {
            let again = Capture::from_toml(&capture.to_toml().unwrap()).unwrap();
            assert_eq!(capture, again);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn explain(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    assert!(explain::explain(&text).iter().all(|line| !line.is_empty()));
    let _ = (explain::controls(&text), explain::vmcb(&text));
}

/// A list, and addresses of which some are near its first symbol.
pub(super) fn symbols(input: &[u8]) {
    let mut input = Input(input);
    let (text, offset) = (input.qword(), u64::from(input.word()));
    let addresses = [text.wrapping_add(offset), input.qword()];
    let list = input.bytes(usize::MAX);
    let Some(symbols) = view::symbols::Symbols::new(list, text) else { return };
    let lines = symbols.lines(text, 0x1000, &addresses);
    assert!(lines.len() <= 1 + addresses.len());
    for line in lines {
        assert!(line.contains("+0x") && line.len() < 400, "{line}");
    }
}
