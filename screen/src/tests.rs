//! Claims on the picture: what an independent look at the pixels reads is what was written.

use super::*;
use proptest::prelude::*;

/// A framebuffer, with a border that nobody may write.
struct Buffer {
    geometry: Geometry,
    bytes: Vec<u8>,
}

impl Buffer {
    fn new(geometry: Geometry) -> Self {
        Self { geometry, bytes: vec![0x55; geometry.pitch as usize * geometry.height as usize] }
    }

    fn ink(&self, x: u32, y: u32) -> bool {
        let at = y * self.geometry.pitch + x * u32::from(self.geometry.bytes_per_pixel);
        self.bytes[at as usize] != 0
    }

    /// Reads the characters of a row of text, by comparing with every glyph.
    fn row(&self, row: u32, scale: u32) -> String {
        let columns = (self.geometry.width / (CELL_WIDTH * scale)).min(MAX_COLUMNS as u32);
        let read = |column: u32| {
            let looks_like = |character: &u8| {
                (0..CELL_HEIGHT * scale).all(|y| {
                    (0..CELL_WIDTH * scale).all(|x| {
                        let at = (column * CELL_WIDTH * scale + x, row * CELL_HEIGHT * scale + y);
                        self.ink(at.0, at.1) == is_set(*character, x / scale, y / scale)
                    })
                })
            };
            (b' '..=b'~').find(looks_like).map_or('#', char::from)
        };
        (0..columns).map(read).collect::<String>().trim_end().to_owned()
    }
}

impl Pixels for Buffer {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

fn geometry(width: u32, height: u32, bytes_per_pixel: u8) -> Geometry {
    Geometry { width, height, pitch: width * u32::from(bytes_per_pixel) + 12, bytes_per_pixel }
}

fn show(geometry: Geometry, text: &str) -> Buffer {
    let mut buffer = Buffer::new(geometry);
    let mut screen = Screen::new(geometry).unwrap();
    screen.clear(&mut buffer);
    text.bytes().for_each(|byte| screen.put(byte, &mut buffer));
    buffer
}

#[test]
fn every_character_is_drawn_and_told_apart() {
    let all: String = (b' '..=b'~').map(char::from).collect();
    for bytes_per_pixel in [3, 4] {
        let buffer = show(geometry(800, 32, bytes_per_pixel), &format!("{all}\n"));
        assert_eq!(buffer.row(0, 1), all.trim_end());
    }
}

#[test]
fn a_line_ends_where_it_does_and_at_the_edge() {
    let buffer = show(geometry(80, 64, 4), "\x1enexit: ab\r\n\r\n0123456789abc\né\n");
    let rows: Vec<String> = (0..4).map(|row| buffer.row(row, 1)).collect();
    assert_eq!(rows, ["nexit: ab", "0123456789", "abc", "?"]);
}

#[test]
fn a_large_screen_has_large_characters() {
    let buffer = show(geometry(3840, 2160, 4), "a wide screen");
    assert_eq!(buffer.row(0, 2), "a wide screen");
}

#[test]
fn a_geometry_that_cannot_be_is_no_screen() {
    let good = geometry(640, 480, 4);
    assert!(Screen::new(good).is_some());
    for bad in [
        Geometry { pitch: 640 * 4 - 1, ..good },
        Geometry { width: u32::MAX, ..good },
        Geometry { width: 7, ..good },
        Geometry { height: 15, ..good },
        Geometry { bytes_per_pixel: 2, ..good },
    ] {
        assert!(Screen::new(bad).is_none(), "{bad:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_last_lines_are_on_the_screen_and_nothing_else(
        lines in proptest::collection::vec("[!-~]{1,20}", 1..40),
        rows in 1u32..9,
        spare in 0u32..16,
    ) {
        let geometry = geometry(163, rows * CELL_HEIGHT + spare, 4);
        let buffer = show(geometry, &lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        let shown: Vec<String> = (0..rows).map(|row| buffer.row(row, 1)).collect();
        let shown: Vec<&String> = shown.iter().filter(|row| !row.is_empty()).collect();
        prop_assert!(!shown.is_empty() && (shown.len() * 4 >= rows as usize || shown.len() == lines.len()));
        let last: Vec<&String> = lines.iter().skip(lines.len() - shown.len()).collect();
        prop_assert_eq!(shown, last);
        // Nothing is written behind the end of a line of pixels, and all of it in front.
        let pitch = geometry.pitch as usize;
        for line in buffer.bytes.chunks_exact(pitch) {
            prop_assert!(line[163 * 4..].iter().all(|byte| *byte == 0x55));
            prop_assert!(line[..163 * 4].iter().all(|byte| *byte == 0 || *byte == INK));
        }
    }
}
