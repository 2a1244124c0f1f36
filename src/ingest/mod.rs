//! (in work)

pub mod registry_routes;
