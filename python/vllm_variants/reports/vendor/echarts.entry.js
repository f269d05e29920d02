// The parts of Apache ECharts that a report draws with. build.sh says how echarts.min.js is made of it.
import { getInstanceByDom, init, use } from "echarts/core";
import { BarChart, TreemapChart } from "echarts/charts";
import { AriaComponent, GridComponent, LegendComponent, TooltipComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, TreemapChart, AriaComponent, GridComponent, LegendComponent, TooltipComponent, SVGRenderer]);
export { getInstanceByDom, init };
