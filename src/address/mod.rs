//! address (placeholder of this branch, dropped at the merge)

pub type Cid = cid::CidGeneric<128>;
pub type Multihash = multihash::Multihash<128>;

/// Why an address could not be read.
#[derive(Debug, thiserror::Error)]
#[error("bad address")]
pub struct AddressError;

pub fn parse_cid(text: &str) -> Result<Cid, AddressError> {
    text.parse().map_err(|_| AddressError)
}
