package yamldoc_test

import (
	"fmt"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/yamldoc"
)

func ExampleSeveral() {
	fmt.Println(yamldoc.Several([]byte("---\nroutes: []\n")))
	fmt.Println(yamldoc.Several([]byte("routes: []\n---\nroutes: [a]\n")))
	// Output:
	// false
	// true
}
