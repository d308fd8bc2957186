//! PLACEHOLDER (dropped at the merge): renter.

pub mod place;

pub mod host {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct HostId(pub [u8; 16]);
}
