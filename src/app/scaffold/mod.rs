//! Folders written for people: a new project, a new producer, a new consumer.
//!
//! Whatever would be refused later is refused before anything is written, and nothing is written over.

mod consumer;
mod producer;

use std::{
    fs,
    path::{Component, Path},
};

use anyhow::{Context, bail};

use crate::cli::say::say;

pub use consumer::consumer;
pub use producer::producer;

/// Names that a crate with handlers cannot have: folders of cargo's, and crates that it depends on.
const TAKEN_CRATE_NAMES: &[&str] = &["build", "deps", "examples", "incremental", "millpond", "serde"];

/// A file that is to be written: where below the folder, and its text.
type NewFile = (String, String);

/// `millpond new DIR`
pub fn project(dir: &Path, rust: bool, millpond: Option<&Path>) -> anyhow::Result<()> {
    let name = project_name(dir)?;
    if dir.exists() && (!dir.is_dir() || fs::read_dir(dir)?.next().is_some()) {
        bail!("{} is not an empty folder; choose a new one", dir.display());
    }
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let mut files = vec![
        file("millpond.toml", include_str!("../templates/millpond.toml")),
        file("README.md", &include_str!("../templates/README.md").replace("{name}", &name)),
        file(".gitignore", "/.millpond\n/target\n"),
    ];
    if rust {
        files.push(("Cargo.toml".to_owned(), crate_manifest(&name, millpond)?));
        files.extend([
            file("src/main.rs", include_str!("../templates/main.rs.txt")),
            file("schemas/Greet/v1.avsc", include_str!("../templates/greet.avsc")),
            file("producers/greeter/producer.toml", include_str!("../templates/greeter.toml")),
            file("producers/greeter/examples/valid/greet.json", include_str!("../templates/greet.json")),
            file("consumers/greetings/consumer.toml", include_str!("../templates/greetings.toml")),
            file("consumers/greetings/handler.rs", include_str!("../templates/handler.rs.txt")),
        ]);
    }
    for folder in ["schemas", "producers", "consumers"] {
        let path = dir.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    write_all(dir, &files)?;
    say!("{} is ready. Next:\n\n  cd {}", dir.display(), dir.display());
    if rust {
        say!("  cargo run -- dev");
    } else {
        say!("  millpond producer new orders --from sample.json    # a file with one JSON object\n  millpond dev");
    }
    Ok(())
}

/// The name of a new project's folder, which is that of the project.
fn project_name(dir: &Path) -> anyhow::Result<String> {
    // An empty path has none.
    let absolute = std::path::absolute(dir).context("DIR: name the folder of the new project")?;
    let Some(Component::Normal(name)) = absolute.components().next_back() else {
        bail!("{}: call the folder of the new project by its name", dir.display())
    };
    let name = name.to_string_lossy().into_owned();
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.starts_with('-') || !name.chars().all(legal) {
        bail!("project name `{name}` must be made of letters, digits, dot, - and _, and not begin with -");
    }
    Ok(name)
}

/// `Cargo.toml` of a project with handlers in Rust.
fn crate_manifest(project: &str, millpond: Option<&Path>) -> anyhow::Result<String> {
    let name = project.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_lowercase();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || TAKEN_CRATE_NAMES.contains(&name.as_str()) {
        bail!(
            "project name `{project}` cannot be that of a crate (`{name}`); choose another that begins with a letter"
        );
    }
    let source = match millpond {
        Some(path) => {
            let path = path.canonicalize().with_context(|| format!("--millpond {}", path.display()))?;
            format!("{{ path = {:?} }}", path.display().to_string())
        }
        None => "\"0.1\"".to_owned(),
    };
    Ok(include_str!("../templates/Cargo.toml.txt").replace("{name}", &name).replace("{millpond}", &source))
}

/// Writes files, none of which may be there yet; says so of each.
fn write_all(dir: &Path, files: &[NewFile]) -> anyhow::Result<()> {
    if let Some(there) = files.iter().map(|(path, _)| dir.join(path)).find(|path| path.exists()) {
        bail!("{} is there already; nothing is overwritten", there.display());
    }
    for (path, text) in files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_is_called_as_its_folder_or_refused() {
        for (dir, name) in [("shop", "shop"), ("../to/my.shop-2", "my.shop-2"), ("a/./b/", "b"), ("2fast", "2fast")] {
            assert_eq!(project_name(Path::new(dir)).unwrap(), name);
        }
        for dir in ["", "a/..", "/", "a b", "a\nb", "-x"] {
            assert!(project_name(Path::new(dir)).is_err(), "{dir:?}");
        }
        assert!(project_name(Path::new(".")).is_ok(), "the folder that one is in");
    }

    #[test]
    fn crate_whose_name_cargo_would_refuse_is_not_written() {
        for (project, name) in [("Shop", "shop"), ("my.shop", "my-shop")] {
            let manifest = crate_manifest(project, None).unwrap();
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{manifest}");
        }
        for project in ["2fast", "_shop", "Build", "millpond", "été"] {
            assert!(crate_manifest(project, None).is_err(), "{project}");
        }
    }

    #[test]
    fn nothing_is_written_where_something_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b"), "mine").unwrap();
        let file = |path: &str| (path.to_owned(), "new".to_owned());
        let refused = write_all(dir.path(), &[file("a"), file("b")]).unwrap_err().to_string();
        assert!(refused.contains("b is there already"), "{refused}");
        assert!(!dir.path().join("a").exists());
        let said = project(&dir.path().join("b"), false, None).unwrap_err().to_string();
        assert!(said.contains("not an empty folder"), "{said}");
    }
}
