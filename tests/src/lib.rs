//! What the emulator tests share.
