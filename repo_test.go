package rhizome_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/doc"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) { tunneltest.VerifyNoLeaks(m) }

const module = "github.com/rhizome-tunnel/rhizome"

// imports are what each package may import besides the standard library, tests
// aside: packages of this module by their path in it, others by a prefix. It is
// what makes a primitive cheap to use, so a new line here is a decision. A path
// that ends in "..." stands for all packages below it.
var imports = map[string][]string{
	".":                        {},
	"tunnel/relay":             {"golang.org/x/sys/unix"},
	"tunnel/internal/guard":    {"tunnel/relay", "golang.org/x/sys/unix"},
	"tunnel/connect":           {"tunnel/internal/guard", "tunnel/relay", "golang.org/x/net/proxy", "golang.org/x/net/http/httpproxy"},
	"tunnel/internal/yamldoc":  {},
	"tunnel/internal/upgrade":  {"tunnel/connect"},
	"tunnel/internal/admit":    {"tunnel/internal/guard", "tunnel/connect", "tunnel/certs"},
	"tunnel/internal/backoff":  {},
	"tunnel/certs":             {"tunnel/internal/yamldoc", "sigs.k8s.io/yaml"},
	"tunnel/mode":              {"tunnel/internal/yamldoc", "sigs.k8s.io/yaml"},
	"tunnel/tunneltest":        {"golang.org/x/net/nettest", "github.com/vishvananda/netlink", "github.com/vishvananda/netns"},
	"tunnel":                   {"tunnel/internal/admit", "tunnel/internal/guard", "tunnel/internal/upgrade", "tunnel/internal/backoff", "tunnel/connect", "tunnel/relay", "tunnel/certs", "github.com/hashicorp/yamux"},
	"tunnel/packet":            {"tunnel/internal/admit", "tunnel/internal/guard", "tunnel/internal/upgrade", "tunnel/internal/backoff", "tunnel/connect", "tunnel/relay", "tunnel/certs", "github.com/vishvananda/netlink", "golang.org/x/sys/unix"},
	"tunnel/packet/packettest": {"tunnel/packet"},
	"tunnel/intercept":         {"tunnel/internal/guard", "tunnel/connect", "tunnel/relay", "proxyproto", "github.com/vishvananda/netlink", "golang.org/x/sys/unix"},
	"tunnel/entrypoint":        {"tunnel/internal/yamldoc", "tunnel/internal/guard", "tunnel/connect", "tunnel/relay", "proxyproto", "sigs.k8s.io/yaml"},
	"proxyproto":               {"tunnel/relay", "github.com/pires/go-proxyproto"},
	"egress":                   {"tunnel/connect", "tunnel/certs", "sigs.k8s.io/yaml"},
	"bond":                     {"tunnel/packet", "github.com/vishvananda/netlink", "golang.org/x/sys/unix"},
	"pathcontrol":              {"github.com/vishvananda/netlink", "golang.org/x/net/icmp", "golang.org/x/net/ipv4", "golang.org/x/net/ipv6", "golang.org/x/sys/unix"},
	// A namespace that programs run in, and rules of nftables: of the programs, never of the library.
	"examples/internal/netlab":    {"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "golang.org/x/sys/unix"},
	"examples/internal/netfilter": {"github.com/google/nftables", "github.com/vishvananda/netlink", "golang.org/x/sys/unix"},
	"examples/shoot/vpn-client":   {"tunnel/packet", "tunnel/certs", "tunnel/connect", "bond", "pathcontrol", "examples/internal...", "github.com/vishvananda/netlink"},
	"examples/...":                {"tunnel...", "bond", "pathcontrol", "egress", "proxyproto", "examples/internal...", "sigs.k8s.io/yaml", "golang.org/x/net", "golang.org/x/sys"},
}

// platforms are where the import rule is looked at: what is imported differs.
var platforms = []string{"linux", "darwin", "windows"}

func TestImports(t *testing.T) {
	seen := make(map[string]bool)
	for _, platform := range platforms {
		for _, p := range goList(t, []string{"GOOS=" + platform}, "-json=ImportPath,Imports", "./...") {
			rel := relative(p.ImportPath)
			rule, ok := ruleOf(rel)
			if !ok {
				t.Errorf("package %s has no line in the table imports of this test: add one with what it may import", rel)
				continue
			}
			seen[rel] = true
			for _, imported := range p.Imports {
				if !isStd(imported) && !slices.ContainsFunc(rule, func(allowed string) bool { return covers(allowed, relative(imported)) }) {
					t.Errorf("%s imports %s (on %s), which it may not: see the table imports of this test", rel, imported, platform)
				}
			}
		}
	}
	for rel := range imports {
		if !strings.HasSuffix(rel, "...") && !seen[rel] {
			t.Errorf("the table imports of this test has a line for %s, which does not exist", rel)
		}
	}
}

// ruleOf finds the line of a package.
func ruleOf(rel string) ([]string, bool) {
	if rule, ok := imports[rel]; ok {
		return rule, true
	}
	for key, rule := range imports {
		if below, ok := strings.CutSuffix(key, "..."); ok && strings.HasPrefix(rel, below) {
			return rule, true
		}
	}
	return nil, false
}

// covers reports whether a path is the allowed one, or below it where that is
// of another module or ends in "...".
func covers(allowed, imported string) bool {
	if prefix, ok := strings.CutSuffix(allowed, "..."); ok {
		return strings.HasPrefix(imported, prefix)
	}
	return imported == allowed || strings.Contains(allowed, ".") && strings.HasPrefix(imported, allowed+"/")
}

// relative is the path of a package within the module; others stay as they are.
func relative(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func isStd(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// TestGoMod keeps the module usable by `go get` and by the two newest releases
// of Go: a replace is not seen by who depends on it.
func TestGoMod(t *testing.T) {
	var mod struct {
		Module  struct{ Path string }
		Go      string
		Replace []any
		Exclude []any
	}
	if _, err := os.ReadFile("go.mod"); err != nil { // so that go test's cache knows of it
		t.Fatal(err)
	}
	if err := json.Unmarshal(goCommand(t, nil, "mod", "edit", "-json"), &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module {
		t.Errorf("module %s, want %s", mod.Module.Path, module)
	}
	if mod.Go != "1.26.0" {
		t.Errorf("go %s, want 1.26.0", mod.Go)
	}
	if len(mod.Replace) > 0 || len(mod.Exclude) > 0 {
		t.Errorf("replace or exclude: %v %v", mod.Replace, mod.Exclude)
	}
}

// TestDocs asks for exactly one package comment in each package, and in
// libraries for a comment on everything that is exported and for an Example
// that is run.
func TestDocs(t *testing.T) {
	for _, d := range directories(t) {
		if len(d.files) == 0 {
			continue // tests only
		}
		var docs []string
		for name, f := range d.files {
			if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
				docs = append(docs, name)
			}
		}
		if len(docs) != 1 {
			slices.Sort(docs)
			t.Errorf("%s: %d files have a package comment, want 1: %v", d.path, len(docs), docs)
		}
		if d.name == "main" || strings.Contains(d.path+"/", "internal/") {
			continue
		}
		for name, f := range d.files {
			if f.Doc != nil && !strings.HasPrefix(f.Doc.Text(), "Package "+d.name+" ") {
				t.Errorf("%s: the package comment begins with %.40q, want \"Package %s …\"", name, f.Doc.Text(), d.name)
			}
		}
		exported := 0
		for _, f := range d.files {
			for ident, documented := range exportedNames(d.fset, f) {
				exported++
				if !documented {
					t.Errorf("%s: %s has no comment", d.fset.Position(ident.Pos()), ident.Name)
				}
			}
		}
		runs := slices.ContainsFunc(doc.Examples(slices.Collect(maps.Values(d.tests))...), func(e *doc.Example) bool {
			return e.Output != "" || e.EmptyOutput
		})
		if exported > 0 && !runs {
			t.Errorf("%s: has no Example with an Output comment", d.path)
		}
	}
}

// exportedNames yields what a file exports and whether it has a comment: its
// own, that of the group it stands in, or, for a constant or variable, that of
// the line right above. Fields are left out, since those whose name says it all
// need none.
func exportedNames(fset *token.FileSet, f *ast.File) map[*ast.Ident]bool {
	names := make(map[*ast.Ident]bool)
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			if decl.Name.IsExported() && (decl.Recv == nil || ast.IsExported(receiver(decl))) {
				names[decl.Name] = decl.Doc != nil
			}
		case *ast.GenDecl:
			above := -1 // last line of a value that has a comment
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if !spec.Name.IsExported() {
						continue
					}
					names[spec.Name] = decl.Doc != nil && !decl.Lparen.IsValid() || spec.Doc != nil
					if i, ok := spec.Type.(*ast.InterfaceType); ok {
						for _, method := range i.Methods.List {
							for _, name := range method.Names {
								if name.IsExported() {
									names[name] = method.Doc != nil || method.Comment != nil || len(i.Methods.List) == 1
								}
							}
						}
					}
				case *ast.ValueSpec:
					documented := decl.Doc != nil || spec.Doc != nil || spec.Comment != nil ||
						fset.Position(spec.Pos()).Line == above+1
					if documented {
						above = fset.Position(spec.End()).Line
					}
					for _, name := range spec.Names {
						if name.IsExported() {
							names[name] = documented
						}
					}
				}
			}
		}
	}
	return names
}

// receiver is the name of a method's type.
func receiver(f *ast.FuncDecl) string {
	name := ""
	ast.Inspect(f.Recv.List[0].Type, func(n ast.Node) bool {
		if ident, ok := n.(*ast.Ident); ok && name == "" {
			name = ident.Name
		}
		return name == ""
	})
	return name
}

// TestFileSize: a file is one concept, and one concept fits in 500 lines.
func TestFileSize(t *testing.T) {
	for _, d := range directories(t) {
		for name := range d.files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if lines := bytes.Count(text, []byte("\n")); lines > 500 {
				t.Errorf("%s has %d lines, more than 500", name, lines)
			}
		}
	}
}

// TestLeakChecks asks each package that has tests for a TestMain with
// tunneltest.VerifyNoLeaks, and for tunneltest.Bubble instead of synctest.Test,
// which dies where a package keeps timers in a global pool.
func TestLeakChecks(t *testing.T) {
	for _, d := range directories(t) {
		verified := false
		for name, f := range d.tests {
			for _, decl := range f.Decls {
				if decl, ok := decl.(*ast.FuncDecl); ok && decl.Name.Name == "TestMain" && decl.Body != nil {
					verified = verified || calls(decl.Body, "VerifyNoLeaks")
				}
			}
			if d.path == "tunnel/tunneltest" {
				continue
			}
			for _, spec := range f.Imports {
				if spec.Path.Value != `"testing/synctest"` {
					continue
				}
				local := "synctest"
				if spec.Name != nil {
					local = spec.Name.Name
				}
				ast.Inspect(f, func(n ast.Node) bool {
					if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Test" {
						if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
							t.Errorf("%s: synctest.Test; use tunneltest.Bubble", d.fset.Position(s.Pos()))
						}
					}
					return true
				})
				if local == "." {
					t.Errorf("%s: imports synctest with a dot", name)
				}
			}
		}
		if len(d.tests) > 0 && !verified {
			t.Errorf("%s: has tests, but no TestMain that calls tunneltest.VerifyNoLeaks", d.path)
		}
	}
}

// calls reports whether a function of this name, of whatever package, is called.
func calls(body ast.Node, name string) bool {
	found := false
	ast.Inspect(body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch f := call.Fun.(type) {
		case *ast.Ident:
			found = found || f.Name == name
		case *ast.SelectorExpr:
			found = found || f.Sel.Name == name
		}
		return true
	})
	return found
}

// TestConnsCloseWrite: a conn without CloseWrite drops half-close silently,
// so every type of our libraries that is a net.Conn has it, exported or not.
func TestConnsCloseWrite(t *testing.T) {
	packages := goList(t, nil, "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles,Name,Standard", "./...")
	export := make(map[string]string)
	for _, p := range packages {
		export[p.ImportPath] = p.Export
	}
	fset := token.NewFileSet()
	imp := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if export[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(export[path])
	})
	netPackage, err := imp.Import("net")
	if err != nil {
		t.Fatal(err)
	}
	conn := netPackage.Scope().Lookup("Conn").Type().Underlying().(*types.Interface)
	errorType := types.Universe.Lookup("error").Type()
	closeWrite := types.NewInterfaceType([]*types.Func{types.NewFunc(token.NoPos, nil, "CloseWrite", types.NewSignatureType(nil, nil, nil, nil,
		types.NewTuple(types.NewVar(token.NoPos, nil, "", errorType)), false))}, nil).Complete()

	found := 0
	for _, p := range packages {
		if p.ImportPath != module && !strings.HasPrefix(p.ImportPath, module+"/") || p.Name == "main" {
			continue
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		info := &types.Info{Defs: make(map[*ast.Ident]types.Object)}
		if _, err := (&types.Config{Importer: imp}).Check(p.ImportPath, fset, files, info); err != nil {
			t.Fatal(err)
		}
		for _, object := range info.Defs {
			name, ok := object.(*types.TypeName)
			if !ok || name.IsAlias() {
				continue
			}
			for _, typ := range []types.Type{name.Type(), types.NewPointer(name.Type())} {
				if !types.Implements(typ, conn) {
					continue
				}
				found++
				if !types.Implements(typ, closeWrite) {
					t.Errorf("%s: %s is a net.Conn without CloseWrite() error", fset.Position(name.Pos()), types.TypeString(typ, (*types.Package).Name))
				}
			}
		}
	}
	if found < 3 {
		t.Errorf("found only %d types that are a net.Conn: does this test still look at them?", found)
	}
}

// directory is a directory of Go files, parsed: of this module or of one nested
// in it.
type directory struct {
	path  string // slash-separated, from the root
	name  string // of the package
	fset  *token.FileSet
	files map[string]*ast.File // by path; tests apart
	tests map[string]*ast.File
}

// directories are all of them, whatever system their files are for.
func directories(t *testing.T) []*directory {
	t.Helper()
	byPath := make(map[string]*directory)
	err := filepath.WalkDir(".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := e.Name(); e.IsDir() && file != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
			return filepath.SkipDir
		}
		if e.IsDir() || filepath.Ext(file) != ".go" {
			return nil
		}
		at := path.Dir(filepath.ToSlash(file))
		d := byPath[at]
		if d == nil {
			d = &directory{path: at, fset: token.NewFileSet(), files: make(map[string]*ast.File), tests: make(map[string]*ast.File)}
			byPath[at] = d
		}
		f, err := parser.ParseFile(d.fset, file, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if strings.HasSuffix(file, "_test.go") {
			d.tests[file] = f
		} else {
			d.files[file], d.name = f, f.Name.Name
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list := slices.Collect(maps.Values(byPath))
	slices.SortFunc(list, func(a, b *directory) int { return strings.Compare(a.path, b.path) })
	return list
}

// listed is what go list -json tells of a package.
type listed struct {
	ImportPath, Name, Dir, Export string
	GoFiles, Imports              []string
}

func goList(t *testing.T, env []string, args ...string) (packages []listed) {
	t.Helper()
	for decoder := json.NewDecoder(bytes.NewReader(goCommand(t, env, append([]string{"list"}, args...)...))); ; {
		var p listed
		if err := decoder.Decode(&p); err == io.EOF {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func goCommand(t *testing.T, env []string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	return out
}
