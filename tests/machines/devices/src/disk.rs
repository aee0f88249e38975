//! What a controller stores: a file that is never written, under the sectors that were written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

#[derive(Debug)]
pub struct Disk {
    file: Option<File>,
    sectors: u64,
    written: BTreeMap<u64, [u8; SECTOR]>,
}

impl Disk {
    /// 1 MiB of zeroes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { file: None, sectors: 2048, written: BTreeMap::new() }
    }

    /// What `path` holds, but for the rest of a sector at its end.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let sectors = file.metadata()?.len() / SECTOR as u64;
        Ok(Self { file: Some(file), sectors, written: BTreeMap::new() })
    }

    /// Its size.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it has all these sectors.
    #[must_use]
    pub fn has(&self, first: u64, count: u64) -> bool {
        first.checked_add(count).is_some_and(|end| end <= self.sectors)
    }

    /// Reads from sector `first` on. False where it cannot.
    #[must_use]
    pub fn read(&self, first: u64, data: &mut [u8]) -> bool {
        match &self.file {
            Some(file) if file.read_exact_at(data, first * SECTOR as u64).is_err() => return false,
            Some(_) => {}
            None => data.fill(0),
        }
        for (sector, data) in (first..).zip(data.chunks_exact_mut(SECTOR)) {
            if let Some(written) = self.written.get(&sector) {
                data.copy_from_slice(written);
            }
        }
        true
    }

    /// Writes from sector `first` on.
    pub fn write(&mut self, first: u64, data: &[u8]) {
        let (sectors, _) = data.as_chunks::<SECTOR>();
        self.written.extend((first..).zip(sectors.iter().copied()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_file_stays_as_it_was() {
        let path = std::env::temp_dir().join(format!("nexit-disk-{}", std::process::id()));
        File::create(&path).and_then(|mut file| file.write_all(&[7; 1100])).unwrap();
        let mut disk = Disk::of_file(&path).unwrap();
        assert_eq!(disk.sectors(), 2);
        assert!(disk.has(1, 1) && !disk.has(1, 2) && !disk.has(u64::MAX, 2));
        disk.write(1, &[9; SECTOR]);
        let mut data = [0; 2 * SECTOR];
        assert!(disk.read(0, &mut data));
        assert_eq!((data[0], data[SECTOR]), (7, 9));
        assert_eq!(std::fs::read(&path).unwrap(), [7; 1100]);
        std::fs::remove_file(&path).unwrap();
    }
}
