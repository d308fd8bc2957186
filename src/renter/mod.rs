//! renter
