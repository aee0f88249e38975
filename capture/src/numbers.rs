//! Numbers and addresses as the file has them: strings, as people write them.

/// `"0xfee00000"`
pub(crate) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(crate) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:#x}"))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<u64, D::Error> {
        parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }

    pub(crate) fn parse(text: &str) -> Result<u64, String> {
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.ok_or_else(|| {
            format!("\"{text}\" is no number: write it in hexadecimal, such as \"0xfee00000\"")
        })
    }
}

/// The same where it may be missing.
pub(crate) mod optional_hex {
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::hex::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<u64>, D::Error> {
        super::hex::deserialize(from).map(Some)
    }
}

/// `["0x4000", "0x0", "?"]`
pub(crate) mod sizes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        sizes: &[Option<u64>],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let text =
            |size: &Option<u64>| size.map_or_else(|| "?".to_string(), |size| format!("{size:#x}"));
        sizes.iter().map(text).collect::<Vec<String>>().serialize(to)
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Vec<Option<u64>>, D::Error> {
        let size = |text: &String| {
            if text == "?" { Ok(None) } else { super::hex::parse(text).map(Some) }
        };
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(size).collect::<Result<_, _>>().map_err(de::Error::custom)
    }
}

/// `"0000:00:1f.2"`
pub(crate) mod bdf {
    use arch::Bdf;
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(crate) fn serialize<S: Serializer>(at: &Bdf, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Bdf, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|error| de::Error::custom(format!("\"{text}\": {error}")))
    }
}
