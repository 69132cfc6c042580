//! Ordered named values: parameters, optimiser state, the state of a run.

use std::ops::Index;

/// Named values in a fixed order. A name is a dotted path, such as `encoder.conv0.weight`.
///
/// ```
/// use vnca::nn::tree::Tree;
///
/// let names = ["encoder.weight", "cell.weight", "cell.bias"].map(String::from);
/// let tree: Tree<usize> = names.into_iter().zip(0..).collect();
/// assert_eq!(tree.scope("cell").names(), ["weight", "bias"]);
/// assert_eq!(tree["cell.bias"], 2);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tree<T> {
    entries: Vec<(String, T)>,
}

impl<T> Default for Tree<T> {
    fn default() -> Tree<T> {
        Tree { entries: Vec::new() }
    }
}

impl<T> FromIterator<(String, T)> for Tree<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(entries: I) -> Tree<T> {
        Tree { entries: entries.into_iter().collect() }
    }
}

impl<T> Extend<(String, T)> for Tree<T> {
    fn extend<I: IntoIterator<Item = (String, T)>>(&mut self, entries: I) {
        self.entries.extend(entries);
    }
}

impl<T> IntoIterator for Tree<T> {
    type Item = (String, T);
    type IntoIter = std::vec::IntoIter<(String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

/// Returns the value of a name.
///
/// # Panics
/// When the tree has no such name, which is a mistake in the caller.
impl<T> Index<&str> for Tree<T> {
    type Output = T;

    #[track_caller]
    fn index(&self, name: &str) -> &T {
        self.get(name).unwrap_or_else(|| panic!("no value is named {name}; the names are {:?}", self.names()))
    }
}

impl<T> Tree<T> {
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Reports whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// Replaces the value of a name, or appends it. Returns the old value.
    pub fn set(&mut self, name: &str, value: T) -> Option<T> {
        match self.entries.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                self.entries.push((name.to_string(), value));
                None
            }
        }
    }

    /// Removes and returns the value of a name. The others keep their order.
    pub fn remove(&mut self, name: &str) -> Option<T> {
        let at = self.entries.iter().position(|(n, _)| n == name)?;
        Some(self.entries.remove(at).1)
    }

    /// Returns the names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Returns the values, in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &T> {
        self.entries.iter().map(|(_, value)| value)
    }

    /// Returns names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &T)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the values whose names begin with `scope` and a dot, without this prefix.
    pub fn scope(&self, scope: &str) -> Tree<T>
    where
        T: Clone,
    {
        let inner = |(name, value): &(String, T)| {
            let rest = name.strip_prefix(scope)?.strip_prefix('.')?;
            Some((rest.to_string(), value.clone()))
        };
        self.entries.iter().filter_map(inner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_strips_its_prefix_and_keeps_the_order() {
        let names = ["cell.conv0.weight", "cellular", "encoder.weight", "cell.bias"];
        let tree: Tree<usize> = names.iter().enumerate().map(|(i, n)| (n.to_string(), i)).collect();
        let cell = tree.scope("cell");
        assert_eq!(cell.iter().collect::<Vec<_>>(), [("conv0.weight", &0), ("bias", &3)]);
        assert_eq!(cell["bias"], 3);
    }

    #[test]
    fn setting_a_value_keeps_its_position() {
        let mut tree: Tree<i32> = [("a".to_string(), 1), ("b".to_string(), 2)].into_iter().collect();
        assert_eq!((tree.set("a", 5), tree.set("c", 7)), (Some(1), None));
        assert_eq!(tree.iter().collect::<Vec<_>>(), [("a", &5), ("b", &2), ("c", &7)]);
        assert_eq!(tree.remove("a"), Some(5));
        assert_eq!(tree.names(), ["b", "c"]);
    }
}
