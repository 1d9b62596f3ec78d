//! Mainstay's wire: the gRPC services between roles, and the explicit conversions to and from
//! [`mainstay_types`].
//!
//! Layout: [`v1`] is generated from `mainstay/v1/*.proto`; [`convert`] turns messages into words and back,
//! refusing what is malformed; [`tokens`] packs prompts; [`client`] is the control client that follows the leader; [`gather`] makes few packets of
//! a call.
#![forbid(unsafe_code)]

pub mod client;
pub mod convert;
pub mod gather;
pub mod tokens;

/// Generated messages and services.
pub mod v1 {
    #![expect(unused_qualifications, reason = "generated")]
    #![expect(clippy::allow_attributes, reason = "generated code carries allow attributes")]
    tonic::include_proto!("mainstay.v1");
}
