//! Who types a command, for what is written down about it.

/// The name that was given, else that of the user who is logged in.
pub fn by(given: Option<&str>) -> String {
    let user = || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let name = given.map(str::to_owned).or_else(user);
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "an operator".to_owned())
}
