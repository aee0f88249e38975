//! Text on a framebuffer: bytes in, pixels out.
//!
//! Pure: pixels go to a [`Pixels`] and are never read back, as reading a framebuffer is slow; what
//! the screen shows is kept as characters. Text is grey on black, so that the order of the colours
//! in a pixel does not matter.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod glyph;
#[cfg(test)]
mod tests;

pub use glyph::{CELL_HEIGHT, CELL_WIDTH, is_set};

use glyph::MAX_SCALE;

/// No more columns are used, however wide the screen is.
pub const MAX_COLUMNS: usize = 160;
/// No more rows are used, however high the screen is.
pub const MAX_ROWS: usize = 64;
/// From this width on, text is drawn twice as large, and from twice this on three times.
const LARGE: u32 = 2048;
/// What each colour of a pixel of a character is.
pub const INK: u8 = 0xc0;

/// Where pixels go.
pub trait Pixels {
    /// Puts `bytes` at `offset` of the framebuffer.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

/// How pixels lie in the framebuffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Bytes from a line to the next.
    pub pitch: u32,
    /// 3 or 4.
    pub bytes_per_pixel: u8,
}

/// A screen of text.
#[derive(Debug)]
pub struct Screen {
    geometry: Geometry,
    scale: u32,
    columns: usize,
    rows: usize,
    cells: [[u8; MAX_COLUMNS]; MAX_ROWS],
    row: usize,
    column: usize,
}

impl Screen {
    /// A screen of blanks; `None` where not even one character fits. What the framebuffer showed
    /// before stays around the text until [`Screen::clear`].
    #[must_use]
    pub fn new(geometry: Geometry) -> Option<Self> {
        let pixels = geometry.width.checked_mul(geometry.bytes_per_pixel.into())?;
        if !matches!(geometry.bytes_per_pixel, 3 | 4) || geometry.pitch < pixels {
            return None;
        }
        let scale = (geometry.width / LARGE + 1).min(MAX_SCALE);
        let columns = (geometry.width / (CELL_WIDTH * scale)) as usize;
        let rows = (geometry.height / (CELL_HEIGHT * scale)) as usize;
        let (columns, rows) = (columns.min(MAX_COLUMNS), rows.min(MAX_ROWS));
        let cells = [[b' '; MAX_COLUMNS]; MAX_ROWS];
        let screen = Self { geometry, scale, columns, rows, cells, row: 0, column: 0 };
        (columns > 0 && rows > 0).then_some(screen)
    }

    /// Makes the whole framebuffer black.
    pub fn clear(&self, pixels: &mut impl Pixels) {
        const BLACK: [u8; 256] = [0; 256];
        let line = self.geometry.width as usize * usize::from(self.geometry.bytes_per_pixel);
        for y in 0..self.geometry.height as usize {
            for x in (0..line).step_by(BLACK.len()) {
                let black = BLACK.get(..(line - x).min(BLACK.len())).unwrap_or_default();
                pixels.write(y * self.geometry.pitch as usize + x, black);
            }
        }
    }

    /// Takes a byte of text in UTF-8. A character beyond ASCII shows as `?`; carriage returns, other
    /// control characters and empty lines do not show.
    pub fn put(&mut self, byte: u8, pixels: &mut impl Pixels) {
        match byte {
            b'\n' if self.column > 0 => self.end_line(pixels),
            b' '..=b'~' => self.show(byte, pixels),
            // The first byte of a longer character.
            0xc0.. => self.show(b'?', pixels),
            _ => {}
        }
    }

    fn show(&mut self, character: u8, pixels: &mut impl Pixels) {
        if self.column == self.columns {
            self.end_line(pixels);
        }
        if self.row == self.rows {
            self.scroll(pixels);
        }
        self.set(self.row, self.column, character, pixels);
        self.column += 1;
    }

    fn end_line(&mut self, _: &mut impl Pixels) {
        self.column = 0;
        self.row += 1;
    }

    /// Moves the text up by a quarter of the screen, so that a long log does not draw everything again
    /// with each line.
    fn scroll(&mut self, pixels: &mut impl Pixels) {
        let by = (self.rows / 4).max(1);
        for row in 0..self.rows {
            for column in 0..self.columns {
                let from = if row + by < self.rows { self.cell(row + by, column) } else { b' ' };
                self.set(row, column, from, pixels);
            }
        }
        self.row -= by;
    }

    fn cell(&self, row: usize, column: usize) -> u8 {
        self.cells.get(row).and_then(|row| row.get(column)).copied().unwrap_or(b' ')
    }

    /// Shows a character in a cell, unless it is there already.
    fn set(&mut self, row: usize, column: usize, character: u8, pixels: &mut impl Pixels) {
        let cell = self.cells.get_mut(row).and_then(|row| row.get_mut(column));
        let Some(cell) = cell.filter(|cell| **cell != character) else { return };
        *cell = character;
        let bytes = usize::from(self.geometry.bytes_per_pixel);
        let scale = self.scale as usize;
        let left = column * CELL_WIDTH as usize * scale * bytes;
        let top = row * CELL_HEIGHT as usize * scale;
        for line in 0..CELL_HEIGHT as usize * scale {
            let mut row = [0; CELL_WIDTH as usize * MAX_SCALE as usize * 4];
            let used = row.get_mut(..CELL_WIDTH as usize * scale * bytes).unwrap_or_default();
            for (x, pixel) in used.chunks_exact_mut(bytes).enumerate() {
                let ink = is_set(character, (x / scale) as u32, (line / scale) as u32);
                pixel.fill(if ink { INK } else { 0 });
            }
            pixels.write((top + line) * self.geometry.pitch as usize + left, used);
        }
    }
}
