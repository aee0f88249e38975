//! The table `[[shared]]`: memory that several guests share.
//!
//! Read after all guests, wherever it stands in the file.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::document::{Item, Table, Value};
use crate::error::{ConfigError, Problem};
use crate::reader::Reader;
use crate::{Places, value};

/// The least that can be shared: a page.
pub const MIN_SHARED: u64 = 4 << 10;
/// Maximum number of guests that share one region.
pub const MAX_PEERS: usize = 8;

const SHARED_KEYS: &str = "name, size, guests";
const TAKES_SHARED: &str = "a list of tables, each under a line [[shared]]";
const TAKES_SIZE: &str = "a power of two from \"4K\" on, in K, M or G, such as \"1M\"";
const TAKES_GUESTS: &str = "a list of 2 to 8 guests' names such as [\"a\", \"b\"]";

/// One `[[shared]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedConfig {
    /// `name`: as a guest's, unique among the regions.
    pub name: String,
    /// `size` in bytes: a power of two, not below [`MIN_SHARED`].
    pub size: u64,
    /// `guests`: 2 to [`MAX_PEERS`] indices into [`crate::Config::guests`]. A guest's place in this
    /// list is its peer identifier.
    pub guests: Vec<usize>,
    /// Where its keys stand.
    pub places: Places,
}

impl Reader {
    /// All `[[shared]]` of the file.
    pub(crate) fn shared(&self, file: &Table) -> Result<Vec<SharedConfig>, ConfigError> {
        let mut regions: Vec<SharedConfig> = Vec::new();
        let Some(item) = file.get("shared") else { return Ok(regions) };
        for entry in self.list("shared", TAKES_SHARED, item)? {
            let region = self.region(entry)?;
            if regions.iter().any(|other| other.name == region.name) {
                let problem = Problem::SharedTwice { name: region.name };
                return Err(self.error(entry, problem));
            }
            regions.push(region);
        }
        Ok(regions)
    }

    fn region(&self, item: &Item) -> Result<SharedConfig, ConfigError> {
        let Value::Table(table) = &item.value else {
            return Err(self.wrong_type("shared", TAKES_SHARED, item));
        };
        let mut places = Places::default();
        for (key, value) in table.iter() {
            match SHARED_KEYS.split(", ").find(|known| *known == key.name) {
                Some(known) => places.add(known, key, value),
                None => return Err(self.unknown(key, "[[shared]]", SHARED_KEYS)),
            }
        }
        let needed = |key: &'static str, example| {
            let problem = Problem::MissingKey { table: "[[shared]]", key, example };
            table.get(key).ok_or_else(|| self.error(item, problem))
        };
        Ok(SharedConfig {
            name: self.printable(needed("name", "name = \"pipe\"")?)?.to_string(),
            size: self.size(needed("size", "size = \"1M\"")?)?,
            guests: self.peers(needed("guests", "guests = [\"a\", \"b\"]")?)?,
            places,
        })
    }

    fn size(&self, item: &Item) -> Result<u64, ConfigError> {
        let text = self.string("size", TAKES_SIZE, item)?;
        let size = value::size(text).filter(|size| size.is_power_of_two() && *size >= MIN_SHARED);
        size.ok_or_else(|| self.bad_value("size", TAKES_SIZE, item, text))
    }

    fn peers(&self, item: &Item) -> Result<Vec<usize>, ConfigError> {
        let mut peers = Vec::new();
        for entry in self.list("guests", TAKES_GUESTS, item)? {
            let name = self.string("guests", TAKES_GUESTS, entry)?;
            let guest = self.guests.iter().position(|guest| guest.name == name);
            let guest = guest.ok_or_else(|| {
                self.error(entry, Problem::NoSuchGuest { name: name.to_string() })
            })?;
            self.not_again("guests", TAKES_GUESTS, entry, &peers, &guest, name)?;
            peers.push(guest);
        }
        if !(2..=MAX_PEERS).contains(&peers.len()) {
            let found = peers.len().to_string() + " of them";
            return Err(self.bad_value("guests", TAKES_GUESTS, item, &found));
        }
        Ok(peers)
    }
}
