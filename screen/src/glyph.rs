//! The characters: the public-domain 8x8 font of the PC, each line drawn twice.

use font8x8::legacy::BASIC_LEGACY;

/// Pixels of a character cell.
pub const CELL_WIDTH: u32 = 8;
/// Pixels of a character cell.
pub const CELL_HEIGHT: u32 = 16;
/// The largest factor by which cells are drawn larger.
pub(crate) const MAX_SCALE: u32 = 3;

/// Whether the pixel at `x`, `y` of this character's cell is set.
#[must_use]
pub fn is_set(character: u8, x: u32, y: u32) -> bool {
    let glyph = BASIC_LEGACY.get(usize::from(character));
    let line = glyph.and_then(|glyph| glyph.get(y as usize / 2));
    line.is_some_and(|line| x < CELL_WIDTH && line >> x & 1 != 0)
}
