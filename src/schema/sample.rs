//! placeholder until merged
pub struct Inferred { pub schema: String, pub fields: Vec<String> }
pub fn infer(_: &[u8], _: &str, _: &str) -> Result<Inferred, Vec<super::Fault>> { Err(vec![]) }
